"""Runs by one process, by two, and by two that hold a part of the model each are the same run."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from process_fakes import in_processes
from stepladder import Tokenizer, presets
from stepladder.errors import ConfigError
from stepladder.images import load_image
from stepladder.training.autoencoder import train
from stepladder.training.config import OptimiserConfig, dump
from stepladder.training.start import make_tokenizer
from stepladder.training.state import latest_state, load_state

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch is built without distributed")

STEPS = 4
PROGRAM = """
import shutil, signal, sys, torch
from pathlib import Path
from stepladder.processes import Processes
from stepladder.training import hardware, loop
from stepladder.training.autoencoder import train
from stepladder.training.config import load_config
hardware.peak_flops = lambda *_: 1e9
torch.set_num_threads(1)
folder = Path(sys.argv[1])
def run(config, name, **options):
    train(load_config(folder / f"{config}.json", presets={}), folder / name, **options)
    Processes().exchange(None)
def copy(name, other):
    if Processes().main:
        shutil.copytree(folder / name, folder / other)
    Processes().exchange(None)
run("two", "two")
run("shards", "shards")
run("shards", "parts", stop_after=2)
copy("parts", "parts-to-one")
run("shards", "parts", resume=True)
run("shards", "one-to-shards", resume=True)
run("two", "one-to-two", resume=True)
run("tokens", "tokens")
run("tokens-shards", "tokens-shards")
def then_interrupt(run, step):
    average(run, step)
    if Processes().index == 1 and step == 0:
        signal.raise_signal(signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)
average, loop._average = loop._average, then_interrupt
try:
    run("two", "interrupted")
except KeyboardInterrupt:
    (folder / f"interrupted-{Processes().index}").touch()
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def runs(make_config, photographs, tmp_path_factory):
    """Folder of all runs."""
    folder = tmp_path_factory.mktemp("runs")
    base = make_config(steps=STEPS, batch_size=2, save_every=2, optimiser=OptimiserConfig(warmup_steps=2))
    data = replace(base.data, validation=[str(photographs)], validation_images=3, validation_size=32)
    base = replace(base, data=data, grid_every=2)
    one = replace(base, accumulate=2)
    tokens = replace(base, tokenizer=presets.tiny_tokens(), gradient_checkpointing=True)
    configs = {
        "two": base,
        "shards": replace(base, shard=True),
        "tokens": tokens,
        "tokens-shards": replace(tokens, shard=True),
    }
    for name, config in configs.items():
        (folder / f"{name}.json").write_text(dump(config))
    train(one, folder / "one", stop_after=2)
    for copy in ("one-to-shards", "one-to-two"):
        shutil.copytree(folder / "one", folder / copy)
    train(one, folder / "one", resume=True)
    in_processes(PROGRAM, folder)
    train(replace(one, shard=True), folder / "parts-to-one", resume=True)
    start = make_tokenizer(one).state_dict()
    return folder, start


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return Tokenizer.from_pretrained(folder / "model").state_dict()


def first_record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "records.jsonl").read_text("utf-8").splitlines()[0])


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], start: dict[str, torch.Tensor]) -> float:
    """How far two models are from each other, against how far they went."""
    between = sum((one[name] - other[name]).square().sum() for name in start)
    moved = sum((one[name] - start[name]).square().sum() for name in start)
    return float((between / moved).sqrt())


@pytest.mark.parametrize("name", ["two", "shards", "parts", "one-to-two", "one-to-shards", "parts-to-one"])
def test_whoever_shares_the_work_learns_the_same(runs, name):
    folder, start = runs
    assert 0 <= apart(weights(folder / "one"), weights(folder / name), start) < 2e-3
    assert apart(weights(folder / "one"), start, start) == pytest.approx(1)


def test_a_resume_of_divided_weights_is_bit_for_bit_the_run_without_a_stop(runs):
    folder, _ = runs
    one, other = weights(folder / "shards"), weights(folder / "parts")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_divided_transformers_that_compute_their_blocks_again_learn_the_same(runs):
    folder, _ = runs
    one, other = weights(folder / "tokens"), weights(folder / "tokens-shards")
    start = {name: torch.zeros_like(value) for name, value in one.items()}
    assert apart(one, other, start) < 1e-4


DISTILLATION = """
import sys, torch
from pathlib import Path
from stepladder.processes import Processes
from stepladder.training import hardware
from stepladder.training.config import load_distill_config
from stepladder.training.distillation import distill
hardware.peak_flops = lambda *_: 1e9
torch.set_num_threads(1)
folder = Path(sys.argv[1])
def run(config, name, **options):
    distill(load_distill_config(folder / f"{config}.json"), folder / name, **options)
    Processes().exchange(None)
for recipe in ("regress", "adversarial"):
    run(recipe, recipe)
    run(f"{recipe}-shards", f"{recipe}-shards")
    run(f"{recipe}-shards", f"{recipe}-parts", stop_after=2)
    run(f"{recipe}-shards", f"{recipe}-parts", resume=True)
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def distillations(make_distillation, tmp_path_factory):
    """Folder of the runs of two processes, with the whole networks and with parts."""
    folder = tmp_path_factory.mktemp("distillations")
    for recipe in ("regress", "adversarial"):
        config = make_distillation(recipe, stages=2, batch_size=2)
        if recipe == "regress":  # without features, so that it is the same to a few digits
            config = replace(config, recipe=replace(config.recipe, perceptual_weight=0.0))
        (folder / f"{recipe}.json").write_text(dump(config))
        (folder / f"{recipe}-shards.json").write_text(dump(replace(config, shard=True)))
    in_processes(DISTILLATION, folder)
    return folder


@pytest.mark.parametrize("recipe", ["regress", "adversarial"])
def test_a_divided_student_learns_what_a_whole_one_learns(distillations, teachers, recipe):
    start = Tokenizer.from_pretrained(teachers[2]).state_dict()
    one, other = weights(distillations / recipe), weights(distillations / f"{recipe}-shards")
    # Features close to zero enlarge what the order of pixels in memory changes, and moments of Adam enlarge it again.
    assert 0 <= apart(one, other, start) < (0.2 if recipe == "adversarial" else 2e-3)
    assert apart(one, start, start) == pytest.approx(1)
    first, divided = (first_record(distillations / name) for name in (recipe, f"{recipe}-shards"))
    assert divided["losses"] == pytest.approx(first["losses"], rel=1e-5)
    assert divided["gradient_norm"] == pytest.approx(first["gradient_norm"], rel=1e-3)


@pytest.mark.parametrize("recipe", ["regress", "adversarial"])
def test_a_resume_of_a_divided_student_and_its_discriminator_changes_no_bit(distillations, recipe):
    places = [latest_state(distillations / f"{recipe}-{name}" / "checkpoints") for name in ("shards", "parts")]
    one, other = (load_state(place) for place in places)
    for part in ("model", "discriminator", "ema"):
        mine, its = getattr(one, part), getattr(other, part)
        assert mine.keys() == its.keys()
        assert all(torch.equal(mine[name], its[name]) for name in mine)
    assert bool(one.discriminator) == (recipe == "adversarial")


def test_validation_by_two_processes_is_that_of_one(runs):
    folder, _ = runs
    for name in ("two", "shards", "parts-to-one"):
        found, wanted = records(folder / name), records(folder / "one")
        assert [record["step"] for record in found] == [record["step"] for record in wanted]
        for one, other in zip(wanted, found, strict=True):
            assert one["images_seen"] == other["images_seen"]
            assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-3)
            if one["validation_psnr_db"] is not None:
                assert one["validation_psnr_db"] == pytest.approx(other["validation_psnr_db"], abs=0.01)
        grid = load_image(folder / name / "grids" / "step-0000004.png")
        assert grid.size == load_image(folder / "one" / "grids" / "step-0000004.png").size


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def test_parts_are_safetensors_of_each_process_that_make_the_whole(runs):
    folder, _ = runs
    place = folder / "shards" / "checkpoints" / "step-0000004"
    assert len(list((place / "shards").glob("*.safetensors"))) == 2
    state, alone = load_state(place), load_state(folder / "two" / "checkpoints" / "step-0000004")
    for one, other in ((state.model, alone.model), (state.ema, alone.ema)):
        assert one.keys() == other.keys()
        assert {name: value.shape for name, value in one.items()} == {name: v.shape for name, v in other.items()}
    for number, moments in alone.optimiser["state"].items():
        assert {key: value.shape for key, value in moments.items()} == {
            key: value.shape for key, value in state.optimiser["state"][number].items()
        }


def test_another_number_of_processes_is_noted(runs):
    folder, _ = runs
    changes = [json.loads(line) for line in (folder / "one-to-shards" / "changes.jsonl").read_text().splitlines()]
    assert {"step": 2, "key": "processes", "old": 1, "new": 2} in changes
    assert {"step": 2, "key": "shard", "old": False, "new": True} in changes


def test_a_signal_to_one_process_ends_all_of_them_one_step_later(runs):
    folder, _ = runs
    assert [(folder / f"interrupted-{process}").exists() for process in (0, 1)] == [True, True]
    assert [path.name for path in (folder / "interrupted" / "checkpoints").iterdir()] == ["step-0000002"]
    assert not (folder / "interrupted" / "model").exists()


def test_divided_weights_are_not_compiled(make_config):
    with pytest.raises(ConfigError, match=r"shard and compile are both true, .* Set one of them to false\."):
        make_config(shard=True, compile=True)
