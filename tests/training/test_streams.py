"""Runs on streams of shards: the checkpoint holds the place of each lane, of every process."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bulk_fakes import make_tar
from process_fakes import in_processes
from stepladder.data import StreamConfig
from stepladder.errors import ConfigError
from stepladder.training.autoencoder import train
from stepladder.training.config import DataConfig, dump
from stepladder.training.state import load_state

PROCESS = """
import sys, torch
from pathlib import Path
from stepladder.training import hardware
from stepladder.training.autoencoder import train
from stepladder.training.config import load_config
hardware.peak_flops = lambda *_: 1e9
torch.set_num_threads(1)
config, folder = map(Path, sys.argv[1:3])
for word in sys.argv[3:]:  # the name of a run, and the step at which it stops
    name, _, last = word.partition(":")
    run = folder / name
    train(load_config(config, presets={}), run, stop_after=int(last), resume=True)
torch.distributed.destroy_process_group()
"""


@pytest.fixture
def streamed(make_config, photographs, tmp_path):
    """A run on four shards of two photographs each, in lanes."""
    photos = sorted(photographs.iterdir())
    for n in range(4):
        make_tar(tmp_path / f"{n}.tar", [(path.name, path.read_bytes()) for path in photos[2 * n : 2 * n + 2]])
    base = make_config()
    data = replace(base.data, train=[str(tmp_path / "*.tar")], stream=StreamConfig(lanes=2, buffer=3))

    def streamed(**changes):
        return make_config(data=data, batch_size=2, **changes)

    return streamed


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_state(run / "checkpoints" / f"step-{step:07d}").model


def places(run: Path, step: int) -> dict[str, dict[str, int]]:
    return load_state(run / "checkpoints" / f"step-{step:07d}").data


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_ten_steps_are_five_and_resumed_five_bit_for_bit(streamed, tmp_path):
    train(streamed(), tmp_path / "whole")
    train(streamed(), tmp_path / "parts", stop_after=5)
    assert set(load_state(tmp_path / "parts" / "checkpoints" / "step-0000005").data) == {"0", "1"}
    train(streamed(), tmp_path / "parts", resume=True)
    assert_same(weights(tmp_path / "parts", 10), weights(tmp_path / "whole", 10))


def test_a_resume_restores_the_streams_of_every_process(streamed, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(dump(streamed(steps=4)))
    in_processes(PROCESS, config, tmp_path, "whole:4", "parts:3", "parts:4")
    assert set(load_state(tmp_path / "parts" / "checkpoints" / "step-0000003").data) == {"0", "1"}
    assert_same(weights(tmp_path / "parts", 4), weights(tmp_path / "whole", 4))
    alone = streamed(steps=4, accumulate=2)  # one process goes on with the lanes of both
    shutil.copytree(tmp_path / "parts", tmp_path / "alone")
    shutil.rmtree(tmp_path / "alone" / "checkpoints" / "step-0000004")
    train(alone, tmp_path / "alone", resume=True)
    assert places(tmp_path / "alone", 4) == places(tmp_path / "whole", 4)
    found, wanted = weights(tmp_path / "alone", 4), weights(tmp_path / "whole", 4)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)


def test_principal_components_start_from_a_stream_too(streamed, tmp_path):
    config = streamed(steps=1)
    start = replace(config.start, principal_components=True)
    train(replace(config, start=start), tmp_path / "run")
    assert (tmp_path / "run" / "model").is_dir()


def test_remote_data_without_a_stream_is_refused():
    text = "data.train names 's3://bucket/0.tar', which is remote, and data.stream is not set. Remote data is streamed."
    with pytest.raises(ConfigError, match=text):
        DataConfig(train=["s3://bucket/0.tar"])
