"""One run in a folder at a time, and only the run that it belongs to."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import stepladder
from stepladder.errors import ConfigError, OutputError
from stepladder.training.autoencoder import train
from stepladder.training.config import OptimiserConfig, TrainConfig
from stepladder.training.folder import MAY_CHANGE, RunFolder


@pytest.fixture(scope="module")
def half(make_config: Callable[..., TrainConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of 4 steps that stopped after 2."""
    folder = tmp_path_factory.mktemp("half") / "run"
    train(make_config(steps=4, save_every=2), folder, stop_after=2)
    return folder


@pytest.fixture
def run(half: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(half, tmp_path / "run"))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --------------------------------------------------------------------------------------------------- what may change


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"seed": 5}, "seed from 0 to 5"),
        (
            {"optimiser": OptimiserConfig(learning_rate=1e-3, warmup_steps=2)},
            "optimiser.learning_rate from 0.002 to 0.001",
        ),
        ({"ema_decay": 0.9}, "ema_decay from 0.999 to 0.9"),
        ({"precision": "bf16"}, 'precision from "no" to "bf16"'),
    ],
)
def test_a_resume_that_would_change_the_run_is_refused_and_changes_nothing(make_config, run, change, text):
    before = content(run)
    with pytest.raises(ConfigError) as caught:
        train(make_config(steps=4, save_every=2, **change), run, resume=True)
    assert f"--resume would change {text}. A resume may change steps, log_every, " in str(caught.value)
    assert "start a new run with another --out" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert content(run) == before


def test_data_and_number_of_stages_are_part_of_the_run_and_all_that_differs_is_named(make_config, run, tmp_path):
    config = make_config(steps=4, save_every=2, seed=1)
    ladder = replace(config.tokenizer.ladder, num_stages=2)
    config = replace(
        config,
        data=replace(config.data, train=[str(tmp_path)]),
        tokenizer=replace(config.tokenizer, ladder=ladder),
    )
    with pytest.raises(ConfigError) as caught:
        RunFolder(run, config, resume=True)
    for text in ("seed from 0 to 1", "tokenizer.ladder.num_stages from 3 to 2", "data.train from ["):
        assert text in str(caught.value)


def test_an_option_that_was_none_is_refused_when_it_becomes_a_table(make_config, run):
    content = json.loads((run / "config.json").read_text())
    content["optimiser"]["linear_rate_scale"] = {"any": 1}
    (run / "config.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r'optimiser\.linear_rate_scale from \{"any": 1\} to null'):
        RunFolder(run, make_config(steps=4, save_every=2), resume=True)


def test_what_may_change_is_accepted_and_written_down(make_config, run):
    config = make_config(steps=6, save_every=3)
    config = replace(config, data=replace(config.data, workers=1), log_every=2)
    train(config, run, resume=True)
    changes = [json.loads(line) for line in (run / "changes.jsonl").read_text().splitlines()]
    assert {(c["key"], c["old"], c["new"]) for c in changes} == {
        ("steps", 4, 6),
        ("save_every", 2, 3),
        ("log_every", 1, 2),
        ("data.workers", 0, 1),
    }
    assert {c["step"] for c in changes} == {2}
    assert json.loads((run / "config.json").read_text())["steps"] == 6
    seen = [json.loads(line)["images_seen"] for line in (run / "records.jsonl").read_text().splitlines()]
    assert seen == [4, 8, 16, 24]
    train(replace(config, steps=8), run, resume=True)
    assert len((run / "changes.jsonl").read_text().splitlines()) == 5


def test_every_key_that_may_change_is_one_of_the_configuration(make_config):
    config = make_config()
    for key in MAY_CHANGE:
        holder = config
        for name in key.split("."):
            assert hasattr(holder, name), key
            holder = getattr(holder, name)


@pytest.mark.parametrize(
    ("processes", "change", "text"),
    [
        (
            2,
            {},
            "takes 8 images (batch_size 4 x accumulate 1 x 2 processes), and this resume 4 (4 x 1 x 1). A run takes "
            "as many in all steps. Set accumulate to 2, or start a new run with another --out.",
        ),
        (
            1,
            {"batch_size": 3},
            "this resume 3 (3 x 1 x 1). A run takes as many in all steps. Set batch_size to 4 and "
            "accumulate to 1, or start a new run",
        ),
        (1, {"accumulate": 2}, "takes 4 images (batch_size 4 x accumulate 1 x 1 processes), and this resume 8"),
    ],
)
def test_a_step_takes_as_many_images_after_a_resume(make_config, run, processes, change, text):
    place = run / "environment.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"processes": processes}))
    before = content(run)
    with pytest.raises(ConfigError) as caught:
        train(make_config(steps=4, save_every=2, **change), run, resume=True)
    assert text in str(caught.value)
    assert content(run) == before


def test_a_number_of_processes_that_cannot_share_a_step_is_refused(make_config, run):
    folder = RunFolder(run, make_config(steps=4, save_every=2), resume=True)
    with pytest.raises(ConfigError, match=r"Start a number of processes that divides 1, or a new run"):
        folder.describe(2, {"processes": 3})


def test_fewer_processes_go_on_where_they_accumulate_more_batches(make_config, run):
    place = run / "environment.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"processes": 2}))
    (run / "config.json").write_text(json.dumps(json.loads((run / "config.json").read_text()) | {"batch_size": 2}))
    train(make_config(steps=3, save_every=2, batch_size=2, accumulate=2), run, resume=True)
    changes = [json.loads(line) for line in (run / "changes.jsonl").read_text().splitlines()]
    assert {"step": 2, "key": "processes", "old": 2, "new": 1} in changes
    assert {"step": 2, "key": "accumulate", "old": 1, "new": 2} in changes
    assert json.loads(place.read_text())["processes"] == 1


# ----------------------------------------------------------------------------------------------------------- the lock


def hold(path: Path, config: TrainConfig, ready: object, done: object) -> None:
    with RunFolder(path, config, resume=False).locked():
        ready.set()
        done.wait(60)


def test_a_folder_in_which_a_run_is_at_work_is_refused_until_it_ends(make_config, tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    path = tmp_path / "run"
    other = context.Process(target=hold, args=(path, make_config(), ready, done))
    other.start()
    try:
        assert ready.wait(60)
        with pytest.raises(
            OutputError, match=r"Another run is at work in .*run\. Wait for its end, or pass another --out"
        ):
            train(make_config(steps=1), path)
        assert not (path / "config.json").exists()
    finally:
        done.set()
        other.join(60)
    train(make_config(steps=1), path)
    assert not (path / ".lock").exists()


def test_a_second_start_leaves_alone_what_the_run_at_work_is_writing(make_config, run):
    config, writing = make_config(steps=4, save_every=2), run / "checkpoints" / ".step-0000004.1"
    with RunFolder(run, config, resume=True).locked():
        writing.mkdir()
        second = RunFolder(run, config, resume=True)
        with pytest.raises(OutputError, match="Another run is at work"), second.locked():
            pass
        assert writing.exists()
    with second.locked():
        assert not writing.exists()


def test_a_run_that_was_killed_leaves_no_lock(make_config, tmp_path):
    code = """
import os, signal, sys
from pathlib import Path
from filelock import FileLock
FileLock(Path(sys.argv[1]) / ".lock", timeout=0).acquire()
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(stepladder.__file__).parents[1])}
    killed = subprocess.run([sys.executable, "-c", code, tmp_path], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / ".lock").exists()
    train(make_config(steps=1), tmp_path)
