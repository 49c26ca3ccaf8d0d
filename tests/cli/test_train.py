import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("accelerate")

from stepladder.tokenizer import Tokenizer


@pytest.fixture
def config(tmp_path, run):
    """Two steps of the tiny preset on two images."""
    data = tmp_path / "data"
    data.mkdir()
    generator = np.random.default_rng(0)
    for index in range(2):
        Image.fromarray(generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(data / f"{index}.png")
    path = tmp_path / "small.json"
    path.write_text(
        json.dumps(
            {
                "preset": "tiny",
                "data": {"train": [str(data)], "crop": {"size": 32}},
                "loss": {"perceptual_weight": 0},
                "steps": 2,
                "batch_size": 2,
                "log_every": 1,
                "grid_every": 0,
            }
        )
    )
    return path


def test_a_dry_run_prints_the_resolved_configuration_and_starts_nothing(run, config, tmp_path):
    result = run("train", config, "--set", "steps=7", "--set", "optimiser.clip_norm=0.5", "--dry-run")
    assert (result.exit_code, result.stderr) == (0, "")
    resolved = json.loads(result.stdout)
    assert resolved["steps"] == 7
    assert resolved["optimiser"]["clip_norm"] == 0.5
    assert resolved["tokenizer"]["latent_channels"] == 16
    assert not (tmp_path / "runs").exists()


def test_training_prints_the_folder_of_a_model_that_loads(run, config):
    result = run("train", config)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{Path('runs/small/model')}\n"
    assert Tokenizer.from_pretrained(result.stdout.strip()).config.latent_channels == 16
    assert "step 2/2  loss " in result.stderr
    assert " images/s  0:00:00 left" in result.stderr


def test_a_run_is_not_overwritten_but_resumed(run, refused, config):
    assert run("train", config, "--out", "r").exit_code == 0
    result = run("train", config, "--out", "r")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("error: r holds a run already. Pass --resume")
    result = run("train", config, "--out", "r", "--resume", "--set", "steps=3")
    assert result.exit_code == 0, result.stderr
    assert "step 3/3" in result.stderr
    assert "step 2/3" not in result.stderr


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("stepz=3", "Unknown key 'stepz'"),
        ("optimiser.learning_rat=1", "Did you mean 'learning_rate'?"),
        ("steps=0", "steps 0 is less than 1"),
        ("steps=many", "steps"),
        ("steps", "is not of the form a.b=value"),
        ("preset=foto", "Unknown preset 'foto'"),
        ("data.train=[]", "data.train is empty"),
    ],
)
def test_a_wrong_configuration_exits_with_2(refused, config, change, text):
    assert text in refused("train", config, "--set", change, "--dry-run", code=2)


def test_a_missing_and_a_broken_configuration_file_exit_with_2(refused, tmp_path):
    assert "no.json" in refused("train", "no.json", code=2)
    (tmp_path / "broken.json").write_text("{")
    assert "is not valid" in refused("train", "broken.json", code=2)


def test_data_that_is_not_there_is_one_line(run, config):
    result = run("train", config, "--set", 'data.train=["nowhere"]')
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert "nowhere" in result.stderr
    assert "Traceback" not in result.stderr
