"""A run that is stopped, killed or refused by the disk goes on as if nothing had happened."""

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import stepladder
from stepladder import Tokenizer
from stepladder.errors import CheckpointError, OutputError
from stepladder.tokenizer_config import TokenizerConfig
from stepladder.training import start, state
from stepladder.training.autoencoder import train
from stepladder.training.config import StartConfig, TrainConfig, dump
from stepladder.training.start import make_tokenizer
from stepladder.training.state import RunState, latest_state, load_state, remove_leftovers, save_state

LAST = "step-0000010"


class Killed(BaseException):
    """The process ends here: nobody handles this."""


@pytest.fixture(scope="module")
def uninterrupted(make_config: Callable[..., TrainConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of 10 steps."""
    folder = tmp_path_factory.mktemp("run") / "whole"
    train(make_config(), folder)
    return folder


def records(run: Path) -> list[dict[str, object]]:
    """Those of a run, without the times."""
    lines = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in lines]


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def assert_same(found: object, wanted: object) -> None:
    """Bit for bit."""
    if isinstance(wanted, torch.Tensor):
        assert isinstance(found, torch.Tensor)
        assert found.dtype == wanted.dtype
        assert torch.equal(found, wanted)
    elif isinstance(wanted, dict):
        assert isinstance(found, dict)
        assert list(found) == list(wanted)
        for key in wanted:
            assert_same(found[key], wanted[key])
    elif isinstance(wanted, list | tuple):
        assert isinstance(found, list | tuple)
        for one, other in zip(found, wanted, strict=True):
            assert_same(one, other)
    else:
        assert found == wanted


def assert_ended_alike(run: Path, wanted: Path, *, last: str = LAST) -> None:
    """Weights, average, optimiser, released model and records are those of the other run."""
    states = [load_state(folder / "checkpoints" / last) for folder in (run, wanted)]
    for part in ("step", "model", "ema", "optimiser"):
        assert_same(getattr(states[0], part), getattr(states[1], part))
    model = Path("model", "model.safetensors")
    assert (run / model).read_bytes() == (wanted / model).read_bytes()
    assert records(run) == records(wanted)


def test_ten_steps_are_five_and_resumed_five_bit_for_bit(make_config, uninterrupted, tmp_path):
    train(make_config(), tmp_path, stop_after=5)
    assert checkpoints(tmp_path) == ["step-0000005"]
    train(make_config(), tmp_path, resume=True)
    assert_ended_alike(tmp_path, uninterrupted)


def test_a_stop_at_step_0_takes_none_and_leaves_the_model_that_the_run_starts_from(
    make_config, uninterrupted, tmp_path
):
    model = Tokenizer.from_pretrained(train(make_config(), tmp_path, stop_after=0))
    assert_same(dict(model.state_dict()), dict(make_tokenizer(make_config()).state_dict()))
    assert not (tmp_path / "checkpoints").exists()
    assert records(tmp_path) == []
    train(make_config(), tmp_path, resume=True)
    assert_ended_alike(tmp_path, uninterrupted)


@pytest.mark.parametrize("keys", ["encoder_from decoder_from", "transfer_from"])
def test_a_run_goes_on_when_the_model_that_it_started_from_is_gone(make_config, uninterrupted, tmp_path, keys):
    model = shutil.copytree(uninterrupted / "model", tmp_path / "start")
    config = make_config(steps=4, save_every=2, start=StartConfig(**dict.fromkeys(keys.split(), str(model))))
    train(config, tmp_path / "whole")
    train(config, tmp_path / "parts", stop_after=2)
    shutil.rmtree(model)
    train(config, tmp_path / "parts", resume=True)
    assert_ended_alike(tmp_path / "parts", tmp_path / "whole", last="step-0000004")


def test_principal_components_are_computed_once_for_a_run(make_config, monkeypatch, tmp_path):
    computed, compute = [], start.start_from_principal_components
    monkeypatch.setattr(
        start, "start_from_principal_components", lambda *given: computed.append(given) or compute(*given)
    )
    config = make_config(steps=2, save_every=1, start=StartConfig(principal_components=True))
    train(config, tmp_path, stop_after=1)
    train(config, tmp_path, resume=True)
    assert len(computed) == 1


def test_a_checkpoint_of_a_version_that_stored_no_configuration_resumes_too(make_config, uninterrupted, tmp_path):
    train(make_config(), tmp_path, stop_after=5)
    file = tmp_path / "checkpoints" / "step-0000005" / "state.pt"
    content = torch.load(file, weights_only=True)
    del content["config"]
    torch.save(content, file)
    train(make_config(), tmp_path, resume=True)
    assert_ended_alike(tmp_path, uninterrupted)


def test_accumulated_batches_are_counted_when_a_run_goes_on(make_config, tmp_path):
    config = make_config(steps=4, accumulate=3, save_every=2)
    train(config, tmp_path / "whole")
    train(config, tmp_path / "parts", stop_after=2)
    train(config, tmp_path / "parts", resume=True)
    assert records(tmp_path / "parts") == records(tmp_path / "whole")


def test_the_same_run_again_is_the_same_bit_for_bit(make_config, uninterrupted, tmp_path):
    train(make_config(), tmp_path)
    assert_ended_alike(tmp_path, uninterrupted)


def test_a_process_killed_while_it_saves_loses_no_checkpoint(make_config, uninterrupted, tmp_path):
    config, run = tmp_path / "config.json", tmp_path / "run"
    config.write_text(dump(make_config()))
    code = """
import os, sys, torch
from pathlib import Path
from stepladder.training import hardware
from stepladder.training.autoencoder import train
from stepladder.training.config import load_config
whole = torch.save
def save(content, file):
    whole(content, file)
    if content["step"] == 10:
        file.flush()
        os.ftruncate(file.fileno(), file.tell() // 2)
        os._exit(9)
torch.save, hardware.peak_flops = save, lambda *_: 1e9
train(load_config(Path(sys.argv[1]), presets={}), Path(sys.argv[2]))
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(stepladder.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code, config, run], env=environment, capture_output=True, check=False)
    assert done.returncode == 9, done.stderr.decode()
    leftovers = [name for name in checkpoints(run) if name.startswith(".")]
    assert (leftovers, checkpoints(run)) == (leftovers[:1], [*leftovers, "step-0000005"])
    assert len(records(run)) == 9  # the record of a step follows its checkpoint
    train(make_config(), run, resume=True)
    assert_ended_alike(run, uninterrupted)
    assert checkpoints(run) == ["step-0000005", LAST]


@pytest.mark.parametrize("moment", ["synchronising", "renaming", "removing an old one"])
def test_a_kill_at_any_moment_of_a_save_leaves_a_whole_checkpoint(tmp_path, monkeypatch, moment):
    def at(step: int) -> RunState:
        return RunState(
            step=step, model={"weight": torch.tensor([float(step)])}, discriminator={}, ema={}, optimiser={}
        )

    def killed(*_: object, **__: object) -> None:
        raise Killed

    for step in (1, 2):
        save_state(at(step), tmp_path, keep=2)
    with monkeypatch.context() as patch:
        match moment:
            case "synchronising":
                patch.setattr(state.os, "fsync", killed)
            case "renaming":
                patch.setattr(Path, "rename", killed)
            case "removing an old one":
                patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(Killed):
            save_state(at(3), tmp_path, keep=2)
    wanted = 3 if moment == "removing an old one" else 2
    place = latest_state(tmp_path)
    assert place is not None
    assert load_state(place).model["weight"].item() == load_state(place).step == wanted
    remove_leftovers(tmp_path)
    save_state(at(4), tmp_path, keep=2)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [f"step-{wanted:07d}", "step-0000004"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_one_line_and_leaves_older_checkpoints_intact(make_config, uninterrupted, tmp_path, monkeypatch):
    train(make_config(), tmp_path, stop_after=5)
    before = (tmp_path / "checkpoints" / "step-0000005" / "state.pt").read_bytes()
    write = torch.save

    def save(content: object, _: object) -> None:
        with Path("/dev/full").open("wb") as full:
            write(content, full)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save)
        with pytest.raises(
            OutputError,
            match=r"checkpoint .*0010: (No space left on device|the disk takes no more, .*)\. Free space there, then",
        ):
            train(make_config(), tmp_path, resume=True)
    assert checkpoints(tmp_path) == ["step-0000005"]
    assert (tmp_path / "checkpoints" / "step-0000005" / "state.pt").read_bytes() == before
    train(make_config(), tmp_path, resume=True)
    assert_ended_alike(tmp_path, uninterrupted)


def test_a_disk_that_refuses_records_is_an_output_error(make_config, tmp_path, monkeypatch):
    opened = Path.open

    def refuse(path: Path, mode: str = "r", *args: object, **options: object) -> object:
        if path.name == "records.jsonl" and mode == "a":
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(path, mode, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(OutputError, match=r"records\.jsonl: No space left on device\. Free space"):
        train(make_config(), tmp_path)


def test_a_run_folder_that_cannot_be_made_is_an_output_error(make_config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Cannot write"):
        train(make_config(), tmp_path / "file" / "run")


def test_records_after_the_checkpoint_are_dropped_and_so_is_half_a_line(make_config, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "checkpoints" / LAST)
    file = tmp_path / "records.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    assert len(lines) == 10
    file.write_text("".join(lines[:8]) + lines[8][:20])
    train(make_config(), tmp_path, resume=True)
    assert_ended_alike(tmp_path, uninterrupted)
    seconds = [json.loads(line)["seconds"] for line in file.read_text().splitlines()]
    assert seconds == sorted(seconds)


def test_an_existing_run_is_not_overwritten(make_config, uninterrupted):
    before = (uninterrupted / "records.jsonl").read_bytes()
    with pytest.raises(OutputError, match=r"holds a run already\. Pass --resume to go on with it, or another --out"):
        train(make_config(), uninterrupted)
    assert (uninterrupted / "records.jsonl").read_bytes() == before


def test_resuming_nothing_warns_and_starts_at_step_0(make_config, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        train(make_config(steps=1), tmp_path / "new", resume=True)
    assert "the run starts at step 0" in caplog.text
    assert [line["step"] for line in records(tmp_path / "new")] == [1]


def test_a_damaged_checkpoint_is_one_line_that_says_what_to_do(make_config, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    (tmp_path / "checkpoints" / LAST / "state.pt").write_bytes(b"half")
    with pytest.raises(CheckpointError, match=r"cannot be read .* Remove that folder and resume from the one before"):
        train(make_config(), tmp_path, resume=True)


def test_a_run_does_not_resume_with_another_network(make_config, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    config = make_config()
    wider = TokenizerConfig(latent_channels=8, encoder=config.tokenizer.encoder, decoder=config.tokenizer.decoder)
    (tmp_path / "config.json").unlink()  # of the network that the run began with
    with pytest.raises(CheckpointError, match=r"does not fit this configuration\. A run resumes with the network"):
        train(make_config(tokenizer=wider), tmp_path, resume=True)


def test_only_the_newest_checkpoints_are_kept(make_config, tmp_path):
    train(make_config(steps=5, save_every=1, keep_checkpoints=2), tmp_path)
    assert checkpoints(tmp_path) == ["step-0000004", "step-0000005"]
