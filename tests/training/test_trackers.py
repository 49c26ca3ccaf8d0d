"""Records and pictures for TensorBoard and Weights & Biases."""

import json
import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
from accelerate.utils import LoggerType

from stepladder.errors import MissingDependencyError
from stepladder.training import trackers
from stepladder.training.autoencoder import train


@pytest.fixture
def config(make_config, photographs):
    data = replace(make_config().data, validation=[str(photographs)], validation_images=2, validation_size=32)
    return make_config(steps=4, data=data, grid_every=4, save_every=2)


@pytest.mark.filterwarnings("default")  # tensorboard uses parts of numpy and protobuf that these call old
def test_tensorboard_shows_the_records_and_the_grids(config, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = replace(config, tracker="tensorboard")
    train(config, tmp_path, stop_after=2)
    train(config, tmp_path, resume=True)
    events = EventAccumulator(str(tmp_path / "tracker" / "stepladder"), size_guidance={"images": 0}).Reload()
    records = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    for tag, wanted in (
        ("loss", [record["loss"] for record in records]),
        ("losses/flow_0", [record["losses"]["flow_0"] for record in records]),
        ("validation_psnr_db/2", [records[-1]["validation_psnr_db"]["2"]]),
        ("stage_residuals/2", [records[-1]["stage_residuals"][2]]),
    ):
        found = events.Scalars(tag)
        assert [event.value for event in found] == pytest.approx(wanted), tag
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    assert [picture.step for picture in events.Images("reconstructions")] == [0, 4]


@pytest.fixture
def wandb(monkeypatch):
    """Stands in for the package: notes what it is given."""
    module = ModuleType("wandb")
    module.__spec__ = ModuleSpec("wandb", None)
    module.started, module.logged, module.configs = [], [], []

    def init(**options):
        module.started.append(options)
        return SimpleNamespace(
            log=lambda values, step, **_: module.logged.append((step, values)), finish=lambda: module.started.append({})
        )

    module.init = init
    module.config = SimpleNamespace(update=lambda values, **_: module.configs.append(values))
    module.Image = lambda picture: picture.size
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr("accelerate.tracking._available_trackers", [LoggerType.WANDB])
    return module


def test_weights_and_biases_gets_the_same_and_a_resume_goes_on_there(config, tmp_path, wandb):
    config = replace(config, tracker="wandb")
    train(config, tmp_path / "first", stop_after=2)
    train(config, tmp_path / "first", resume=True)
    begun = [options for options in wandb.started if options]
    assert [options["project"] for options in begun] == ["stepladder"] * 2
    assert begun[0]["id"] == begun[1]["id"]
    assert (begun[0]["name"], begun[0]["resume"]) == ("first", "allow")
    assert wandb.configs[0]["data/crop/size"] == 32
    losses = [(step, values["loss"]) for step, values in wandb.logged if "loss" in values]
    records = [json.loads(line) for line in (tmp_path / "first" / "records.jsonl").read_text().splitlines()]
    assert losses == [(record["step"], record["loss"]) for record in records]
    pictures = [(step, values["reconstructions"]) for step, values in wandb.logged if "reconstructions" in values]
    assert [(step, [height for _, height in sizes]) for step, sizes in pictures] == [(0, [212]), (4, [212])]


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_package_that_is_not_there_is_one_line_before_anything_is_written(config, tmp_path, monkeypatch, name):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(
        MissingDependencyError, match=rf"tracker '{name}' needs the package {name}, .*stepladder\[trackers\]"
    ):
        train(replace(config, tracker=name), tmp_path / "run")
    assert not (tmp_path / "run").exists()
