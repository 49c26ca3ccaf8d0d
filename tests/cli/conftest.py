"""A tiny model on disk, a few small images, and the command line as a function."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import stepladder
from stepladder.cli import app
from stepladder.presets import tiny
from stepladder.tokenizer import Tokenizer


@pytest.fixture(autouse=True)
def quick(few_features, peak) -> None:
    """Commands that measure do so with what takes no seconds."""


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = Tokenizer(tiny())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in tokenizer.parameters():  # fresh last layers are zero, and would ignore the noise
            parameter.normal_(0, 0.1, generator=generator)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder with `a.png` (17 x 9) and `b.jpg` (8 x 8)."""
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (17, 9), (200, 60, 30)).save(folder / "a.png")
    Image.new("RGB", (8, 8), (0, 0, 255)).save(folder / "b.jpg")
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch) -> Callable:
    """Runs a command inside an empty folder; arguments may be paths."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)

    return run


@pytest.fixture
def refused(run) -> Callable:
    """Runs a command that must fail with one line on stderr and nothing on stdout; returns the line."""

    def refused(*arguments, code=1):
        result = run(*arguments)
        assert result.exit_code == code, result.output
        assert result.stdout == ""
        assert result.stderr.count("\n") == 1, result.stderr
        assert result.stderr.startswith("error: ")
        return result.stderr.removeprefix("error: ").strip()

    return refused


@pytest.fixture
def python() -> Callable:
    """Runs code with arguments in another interpreter that finds the same package."""
    environment = {**os.environ, "PYTHONPATH": str(Path(stepladder.__file__).parents[1])}

    def python(code, *arguments, **options):
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        command = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.run(command, env=environment, text=True, check=False, **options)

    return python
