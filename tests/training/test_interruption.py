"""Signals end a run after a checkpoint; a gradient that is not finite costs a step, not the run."""

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import stepladder
from stepladder.errors import TrainingError
from stepladder.training.autoencoder import TokenizerObjective, train
from stepladder.training.config import dump
from stepladder.training.interruption import Interruption
from stepladder.training.state import latest_state, load_state


@pytest.fixture(autouse=True)
def _as_in_a_terminal() -> Iterator[None]:
    """Who starts the tests in the background may have SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


ENDLESS = """
import sys
from stepladder.training import hardware
hardware.peak_flops = lambda *_: 1e9
from stepladder.cli import main
main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_signal_saves_says_where_and_ends_with_its_code(make_config, tmp_path, number, code, workers):
    config = make_config(steps=100_000, save_every=100_000)
    config = replace(config, data=replace(config.data, workers=workers))
    (tmp_path / "config.json").write_text(dump(config))
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(stepladder.__file__).parents[1]),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", ENDLESS, "train", str(tmp_path / "config.json"), "--out", str(tmp_path / "run")]
    process = subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True, bufsize=1
    )
    try:
        said = []
        for line in process.stderr:
            said.append(line)
            if line.startswith("step 3/"):
                os.killpg(process.pid, number)  # as a terminal or a batch system does: to workers, too
                break
        said += process.stderr.readlines()
        assert process.wait(120) == code, "".join(said)
    finally:
        process.stderr.close()
        if process.poll() is None:
            process.kill()
            process.wait()
    place = latest_state(tmp_path / "run" / "checkpoints")
    step = load_state(place).step
    assert step >= 3
    words = f"warning: {signal.Signals(number).name}: saved at step {step} in {tmp_path / 'run'}. --resume goes on"
    assert any(line.startswith(words) for line in said), "".join(said)
    assert "Traceback" not in "".join(said)
    assert [json.loads(line)["step"] for line in (tmp_path / "run" / "records.jsonl").read_text().splitlines()][
        -1
    ] == step
    assert not (tmp_path / "run" / "model").exists()


def test_a_run_goes_on_where_a_signal_ended_it(make_config, tmp_path):
    def interrupt(record):
        if record.step == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(make_config(), tmp_path / "parts", on_record=interrupt)
    assert load_state(latest_state(tmp_path / "parts" / "checkpoints")).step == 3
    train(make_config(), tmp_path / "parts", resume=True)
    train(make_config(), tmp_path / "whole")
    model = Path("model", "model.safetensors")
    assert (tmp_path / "parts" / model).read_bytes() == (tmp_path / "whole" / model).read_bytes()


def test_handlers_are_those_of_before_when_a_run_ends(make_config, tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    train(make_config(steps=1), tmp_path)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_signal_does_what_it_did_before():
    with pytest.raises(KeyboardInterrupt), Interruption() as interruption:
        signal.raise_signal(signal.SIGINT)
        assert interruption.noted() == "SIGINT"
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second one passed, too")


def test_a_run_in_another_thread_leaves_signals_alone(make_config, tmp_path):
    thread = threading.Thread(target=train, args=(make_config(steps=1), tmp_path))
    thread.start()
    thread.join(120)
    assert (tmp_path / "model").exists()


@pytest.fixture
def broken(monkeypatch):
    """Makes the gradients of some steps infinite."""

    def break_(steps):
        forward, taken = TokenizerObjective.forward, [0]

        def overflowing(self, images, seed, progress=0.0):
            loss, losses = forward(self, images, seed, progress)
            taken[0] += self.training
            return loss * (math.inf if taken[0] in steps and self.training else 1.0), losses

        monkeypatch.setattr(TokenizerObjective, "forward", overflowing)

    return break_


def test_one_gradient_that_is_not_finite_is_skipped_and_counted(make_config, broken, tmp_path):
    broken({3, 5})
    shown = []
    config = make_config(steps=6, log_every=2, save_every=1, keep_checkpoints=9)
    train(config, tmp_path, on_record=shown.append)
    assert [record.skipped_steps for record in shown] == [0, 1, 1]
    assert all(math.isfinite(record.loss) and math.isfinite(record.gradient_norm) for record in shown)
    weights = [load_state(place).model for place in sorted((tmp_path / "checkpoints").iterdir())]
    name = "decoder.network.reader.linear.weight"
    moved = [not torch.equal(a[name], b[name]) for a, b in itertools.pairwise(weights)]
    assert moved == [True, False, True, False, True]
    assert torch.isfinite(weights[-1][name]).all()


def test_a_record_of_skipped_steps_alone_has_no_loss(make_config, broken, tmp_path):
    broken({2})
    shown = []
    train(make_config(steps=3), tmp_path, on_record=shown.append)
    assert [record.loss is None for record in shown] == [False, True, False]
    assert json.loads((tmp_path / "records.jsonl").read_text().splitlines()[1])["gradient_norm"] is None


def test_ten_in_a_row_end_the_run_and_nine_do_not(make_config, broken, tmp_path):
    broken({*range(2, 11), *range(12, 22)})
    shown = []
    with pytest.raises(TrainingError, match="not finite in 10 steps in a row, up to step 21"):
        train(make_config(steps=30), tmp_path, on_record=shown.append)
    assert shown[-1].step == 20
