import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("accelerate")

from stepladder.cli._training import _Board
from stepladder.tokenizer import Tokenizer
from stepladder.training import trackers
from stepladder.training.records import StepRecord


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


def test_one_step_is_one_step(run, config):
    result = run("train", config, "--set", "steps=1", "--out", "r")
    assert "Training in r, 1 step.\n" in result.stderr


def test_validation_is_said_in_words(run, config, tmp_path):
    validation = [f'data.validation=["{tmp_path / "data"}"]', "data.validation_size=32", "grid_every=2"]
    result = run("train", config, *(word for change in validation for word in ("--set", change)))
    assert result.exit_code == 0, result.stderr
    number = r"-?\d+\.\d\d dB"
    rows = f"initial estimate {number}, 1 step per stage {number}, 2 steps per stage {number}"
    assert re.search(f"^step 2: PSNR of the validation images: {rows}$", result.stderr, re.MULTILINE), result.stderr


def test_a_skipped_step_is_said(capsys):
    numbers = {"steps": 4, "images_seen": 8, "seconds": 1.0, "images_per_second": 8.0, "learning_rate": 1.0}
    with _Board() as board:
        board.show(StepRecord(step=2, gradient_norm=None, loss=None, losses={}, skipped_steps=2, **numbers))
    said = capsys.readouterr().err
    assert "step 2: 2 skipped, because the gradient was not finite" in said
    assert "step 2/4  loss none" in said


@pytest.mark.parametrize(("speed", "said"), [(0.0124, "0.012"), (0.5, "0.50"), (12.34, "12.3")])
def test_slow_runs_have_a_speed_other_than_zero(speed, said, capsys):
    numbers = {"steps": 4, "images_seen": 8, "seconds": 1.0, "learning_rate": 1.0}
    with _Board() as board:
        board.show(StepRecord(step=2, gradient_norm=None, loss=1.0, losses={}, images_per_second=speed, **numbers))
    assert f"  {said} images/s  " in capsys.readouterr().err


def test_a_starter_configuration_is_printed_and_loads_back(run, config, tmp_path):
    result = run("train", "--init", "tiny")
    assert (result.exit_code, result.stderr) == (0, "")
    (tmp_path / "starter.toml").write_text(result.stdout)
    changes = [f'data.train=["{tmp_path / "data"}"]', "data.validation=[]", "steps=1", "batch_size=2"]
    changes += ["loss.perceptual_weight=0", "data.crop.size=32"]
    done = run("train", "starter.toml", *(word for change in changes for word in ("--set", change)))
    assert done.exit_code == 0, done.stderr


def test_a_starter_of_no_preset_and_no_configuration_at_all_exit_with_2(refused):
    assert "Unknown preset 'foto'. Accepted: photo, " in refused("train", "--init", "foto", code=2)
    assert "No configuration is named." in refused("train", code=2)


def test_options_that_would_be_ignored_are_refused(refused, config):
    assert refused("train", config, "--json", code=2).startswith("--json goes with --profile,")
    assert refused("train", config, "--init", "photo", code=2).startswith("--init photo writes a configuration and")


def test_a_tracker_that_is_not_installed_is_one_line(run, config, monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    result = run("train", config, "--tracker", "wandb")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        "error: tracker 'wandb' needs the package wandb, which is not installed. pip install 'stepladder[trackers]', "
        "or leave the tracker out."
    )
    assert not Path("runs").exists()


def test_training_out_of_memory_names_the_keys_that_need_less(run, config, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("stepladder.training.autoencoder.train", full)
    result = run("train", config)
    assert (result.exit_code, result.stdout) == (1, "")
    text = result.stderr.splitlines()[-1]
    assert "Not enough memory. Set batch_size or data.crop.size smaller, or gradient_checkpointing to true" in text
    assert "--batch" not in text and "--device" not in text


def test_a_tracker_that_does_not_exist_exits_with_2(refused, config):
    text = refused("train", config, "--tracker", "paper", "--dry-run", code=2)
    assert "'paper' is unknown. Accepted: 'tensorboard', 'wandb'" in text


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
