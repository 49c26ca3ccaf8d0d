"""The shell blocks of the README run as they are written, line by line, in a folder with a user's photographs."""

import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image
from skimage import data
from typer.testing import CliRunner

from stepladder.cli import app
from stepladder.measure import benchmarking

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
SHELL, *TRAINING = (body for language, body in BLOCKS if not language and body.startswith("stepladder"))
PYTHON = next(body for language, body in BLOCKS if language == "python")


@pytest.fixture
def photographs(tmp_path, monkeypatch) -> Path:
    """`photo.jpg`, and a folder `photos` of two."""
    (tmp_path / "photos").mkdir()
    for path, image in (
        ("photo.jpg", data.astronaut()),
        ("photos/a.jpg", data.astronaut()),
        ("photos/b.jpg", data.chelsea()),
    ):
        Image.fromarray(image).resize((120, 90)).save(tmp_path / path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def once(monkeypatch, few_features, peak) -> None:
    """Commands that measure do so once."""
    measure = benchmarking.benchmark
    monkeypatch.setattr(benchmarking, "benchmark", lambda *models, **words: measure(*models, **words | {"repeats": 1}))


@pytest.mark.usefixtures("once")
def test_every_line_of_the_shell_block_runs_one_after_the_other(photographs):
    lines = SHELL.splitlines()
    assert len(lines) == 6
    for line in lines:
        program, *words = shlex.split(line)
        assert program == "stepladder"
        result = CliRunner().invoke(app, words, catch_exceptions=False)
        assert result.exit_code == 0, (line, result.stderr)
        if "--json" in words:
            assert [row["steps_per_stage"] for row in json.loads(result.stdout)["rows"]] == [1, 2]
    made = {path.relative_to(photographs).as_posix() for path in photographs.rglob("*") if path.is_file()}
    made -= {"photo.jpg", "photos/a.jpg", "photos/b.jpg"}
    assert made == {"out/photo.png", "out/photo-compare.png", "z.safetensors", "decoded/photo.png"}


def test_the_python_block_runs(capsys):
    exec(compile(PYTHON, "README.md", "exec"), {})
    assert "(2, 3, 200, 312)" in capsys.readouterr().out


SHORT = """
steps = 1
batch_size = 2
grid_every = 0

[data]
train = ["photos"]
crop.size = 32
"""


def test_every_line_of_the_blocks_on_training_runs_one_after_the_other(photographs, monkeypatch):
    pytest.importorskip("accelerate")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr("stepladder.training.hardware.peak_flops", lambda device, dtype: 1e9)
    Path("config.toml").write_text(f'preset = "tiny"{SHORT}\n[loss]\nperceptual_weight = 0')
    recipe = '[recipe]\nkind = "regress"\nteacher_steps = 2\nperceptual_weight = 0'
    Path("distill.toml").write_text(f'teacher = "runs/first/model"{SHORT}\n{recipe}')
    lines = [line for block in TRAINING for line in block.splitlines()]
    assert len(lines) == 5
    for line in lines:
        program, *words = shlex.split(line, comments=True)
        assert program == "stepladder"
        result = CliRunner().invoke(app, words, catch_exceptions=False)
        assert result.exit_code == 0, (line, result.stderr)
    assert {path.parent.name for path in photographs.glob("runs/*/model")} == {"first", "second", "fast"}
