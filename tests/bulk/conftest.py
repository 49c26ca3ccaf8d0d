"""Tiny models of each kind of bottleneck, and small data sets with labels."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import stepladder
from bulk_fakes import make_rows
from stepladder.bottlenecks import FSQConfig, KLConfig
from stepladder.bulk.jobs import encode
from stepladder.bulk.options import EncodeOptions
from stepladder.bulk.run import Engine, Summary
from stepladder.presets import tiny
from stepladder.tokenizer import Tokenizer

BOTTLENECKS = {"plain": {}, "kl": {"bottleneck": KLConfig()}, "fsq": {"bottleneck": FSQConfig(levels=[2] * 16)}}


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> dict[str, str]:
    """Folders of models by their bottlenecks."""
    found = {}
    for kind, changes in BOTTLENECKS.items():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            folder = tmp_path_factory.mktemp("models") / kind
            Tokenizer(replace(tiny(), **changes)).save_pretrained(folder)
        found[kind] = str(folder)
    return found


@pytest.fixture
def rows(tmp_path) -> Path:
    """A Parquet file of twelve images with labels 0 to 11, of which number 5 is damaged."""
    return make_rows(tmp_path / "rows.parquet")


@pytest.fixture
def python() -> Callable:
    """Runs code with arguments in another interpreter that finds the same package."""
    environment = {**os.environ, "PYTHONPATH": str(Path(stepladder.__file__).parents[1])}

    def python(code, *arguments):
        command = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    return python


@pytest.fixture
def coded(tmp_path, models) -> Callable[..., Summary]:
    """Encodes into a folder below the temporary one, in this process unless told otherwise."""

    def coded(data: object, output: str = "out", *, kind: str = "plain", workers: int = 0, **options) -> Summary:
        options = {"size": 16, "batch": 2, "shard": 4} | options
        target = output if "://" in output else str(tmp_path / output)
        return encode(
            str(data), target, model=models[kind], options=EncodeOptions(**options), engine=Engine(workers=workers)
        )

    return coded
