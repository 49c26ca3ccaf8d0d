import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("accelerate")

from stepladder import presets
from stepladder.tokenizer import Tokenizer


@pytest.fixture
def config(tmp_path, run):
    """Two steps of regression on two images, from a tiny teacher."""
    data = tmp_path / "data"
    data.mkdir()
    generator = np.random.default_rng(0)
    for index in range(2):
        Image.fromarray(generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(data / f"{index}.png")
    Tokenizer(presets.tiny()).save_pretrained(tmp_path / "teacher")
    path = tmp_path / "fast.json"
    path.write_text(
        json.dumps(
            {
                "teacher": "teacher",
                "recipe": {"kind": "regress", "teacher_steps": 2, "perceptual_weight": 0},
                "data": {"train": [str(data)], "crop": {"size": 32}},
                "steps": 2,
                "batch_size": 2,
                "log_every": 1,
                "grid_every": 0,
            }
        )
    )
    return path


def test_a_dry_run_prints_the_resolved_configuration_and_starts_nothing(run, config, tmp_path):
    result = run("distill", config, "--set", "recipe.teacher_steps=5", "--dry-run")
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout)["recipe"]["teacher_steps"] == 5
    assert not (tmp_path / "runs").exists()


def test_distilling_prints_the_folder_of_a_model_of_one_step_per_scale(run, config):
    result = run("distill", config)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{Path('runs/fast/model')}\n"
    assert Tokenizer.from_pretrained(result.stdout.strip()).steps_per_stage == 1
    assert result.stderr.startswith("Distilling in ")
    assert "step 2/2  loss " in result.stderr


def test_a_run_goes_on_with_resume(run, config):
    assert run("distill", config, "--out", "r").exit_code == 0
    result = run("distill", config, "--out", "r")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("error: r holds a run already. Pass --resume")
    result = run("distill", config, "--out", "r", "--resume", "--set", "steps=3")
    assert result.exit_code == 0, result.stderr
    assert "step 3/3" in result.stderr
    assert "step 2/3" not in result.stderr


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("recipe.teacher_steps=1", "Teacher steps 1 is less than 2"),
        ("recipe.kind=magic", "its kind is 'magic'"),
        ("tokenizer.latent_channels=3", "Unknown key 'tokenizer'"),
    ],
)
def test_a_wrong_configuration_exits_with_2(refused, config, change, text):
    assert text in refused("distill", config, "--set", change, "--dry-run", code=2)


def test_a_teacher_that_is_not_there_is_one_line(run, config, tmp_path):
    result = run("distill", config, "--set", "teacher=nobody")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("error: Unknown model 'nobody'")
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "runs").exists()
