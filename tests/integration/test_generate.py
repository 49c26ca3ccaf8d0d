"""The example that draws images: a prior on the latents of a tokenizer, small enough to train here."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks import tables
from examples import generate
from examples.generation.config import load_training_config
from examples.generation.latents import (
    encode,
    open_labelled,
    read_latents,
)
from examples.generation.model import NetworkConfig, Prior, PriorConfig, load_prior, save_prior
from examples.generation.sampling import MAX_SEED, decoder_seeds, draw, evaluations
from examples.generation.training import Split, flow_loss, train
from generation_fakes import CONFIG, LABELS, NETWORK, SIZE, Mean
from stepladder import CheckpointError, ConfigError, Tokenizer, presets
from stepladder.errors import DataError, OutputError
from stepladder.losses import LocalTimes
from stepladder.sampling.guidance import GuidanceConfig
from stepladder.sampling.randomness import generator

ROOT = Path(__file__).parents[2]
PLAIN = GuidanceConfig()
TOML = """
names = ["hat", "shoes", "dress"]
steps = 2
batch_size = 4
held_out = 4

[network]
width = 16
depth = 1
"""


@pytest.fixture(scope="module")
def run_folder(place, latents):
    train(CONFIG, latents, place / "run")
    return place / "run"


@pytest.fixture
def prior(run_folder) -> Prior:
    """A trained prior that has left its initial weights, so that classes show."""
    prior = load_prior(run_folder / "prior.safetensors")
    for name, parameter in sorted(prior.named_parameters()):
        parameter += 0.3 * torch.randn(parameter.shape, generator=generator(len(name)))
    return prior


def records(folder):
    return [json.loads(line) for line in (folder / "records.jsonl").read_text("utf-8").splitlines()]


def test_the_commands_lead_from_images_to_a_picture_and_a_record(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(generate, "efficientnet_lite", lambda variant, *, device: Mean())
    images, latents, run = str(place / "images-*.parquet"), tmp_path / "latents.safetensors", tmp_path / "run"
    (tmp_path / "config.toml").write_text(TOML, "utf-8")
    models = [f"{place / 'tiny'}@2", f"{place / 'tiny'}@1"]
    draws = ["--steps", "2", "--seed", "5"]

    words = ["encode", str(place / "tiny"), images, "--size", "32", "--mirrored", "--out", str(latents)]
    assert generate.main(words) == 0
    assert "2 x 24 x 16 x 16" in capsys.readouterr().out
    words = ["train", str(tmp_path / "config.toml"), "--latents", str(latents), "--out", str(run)]
    assert generate.main(words) == 0
    assert "step 2/2  loss " in capsys.readouterr().err

    shown = ["--classes", "3", "11", "--samples", "3", "--tile", "64", "--training", images, "--nearest", "1"]
    assert generate.main(["sample", str(run), *models, *draws, *shown, "--out", str(tmp_path / "samples.png")]) == 0
    assert "hat, dress from top to bottom" in capsys.readouterr().out
    with Image.open(tmp_path / "samples.png") as picture:
        block, gap = 3 * 64 + 2 * 4, 16
        assert picture.size == (88 + gap + block + gap + block + gap + 64, 28 + 64 + 4 + 64)
        borders = np.cumsum([88 + gap, block + gap, block + gap])
        captions, left, right, nearest = np.split(np.asarray(picture)[28:], borders, axis=1)
        assert not np.array_equal(left, right)
        assert captions.std() > 0
        assert nearest.std() > 0
    words = ["sample", str(run), models[0], *draws, "--colours", "8", "--out", str(tmp_path / "few.png")]
    assert generate.main(words) == 0
    with Image.open(tmp_path / "few.png") as picture:
        assert len(picture.getcolors()) == 8

    words = ["evaluate", str(run), images, *models, "--data-name", "noise", "--batch", "10", *draws]
    words += ["--training", str(place / "images-?.parquet"), "--out", str(tmp_path / "record.json")]
    assert generate.main(words) == 0
    record = json.loads((tmp_path / "record.json").read_text("utf-8"))
    assert tuple(record) == tables.RECORD_KEYS
    assert record["seed"] == 5
    assert " noise " in record["command"]
    assert images not in record["command"]
    assert "--training 'images-?.parquet'" in record["command"]
    report = record["report"]
    assert (report["images"], report["size"], report["data"]) == (24, 32, "noise")
    assert [row["network_evaluations"] for row in report["rows"]] == [6, 3]
    assert report["prior"]["network_evaluations"] == 5
    for row in report["rows"]:
        assert all(row[key] > 0 for key in ("seconds_per_image", "prior_seconds_per_image", "gflop_per_image"))
        assert row["fd_reconstructions"] > 0
        assert row["fd_efficientnet_lite2"] > 0
        assert 0 < row["reconstructed_to_training"] <= 2
        assert 0 < row["drawn_to_training"] <= 2
    assert "| `tiny@1` |" in tables.render(record)
    assert "distance to training images" in tables.render(record)


def test_the_prior_works_on_latents_of_zero_mean_and_unit_variance(latents, tmp_path):
    prior = load_prior(train(replace(CONFIG, steps=1, held_out=1), latents, tmp_path))
    found = prior.normalise(latents.latents[0].float())
    assert found.mean(0).abs().max() < 0.3
    assert (found.std(0) - 1).abs().max() < 0.3
    torch.testing.assert_close(prior.restore(found), latents.latents[0].float())


def test_the_loss_falls_on_a_fixed_batch(latents):
    torch.manual_seed(0)
    prior = Prior(PriorConfig(shape=[16, 4, 4], side=SIZE, labels=LABELS, fingerprint="", network=NETWORK))
    batch, classes = latents.latents[0, :8].float(), torch.arange(8) % 3
    batch = (batch - batch.mean(0)) / batch.std(0)
    optimiser = torch.optim.Adam(prior.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = flow_loss(prior, batch, classes, LocalTimes(), generator(0))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(parameter.isfinite().all() for parameter in prior.parameters())


def test_a_resumed_run_is_bit_for_bit_one_that_was_never_stopped(run_folder, latents, tmp_path):
    train(CONFIG, latents, tmp_path, stop_after=2)
    train(CONFIG, latents, tmp_path, resume=True)
    one, two = load_prior(run_folder / "prior.safetensors"), load_prior(tmp_path / "prior.safetensors")
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name]), name
    assert [record["step"] for record in records(run_folder)] == [2, 3, 4, 6]
    assert [record["step"] for record in records(tmp_path)] == [2, 3, 4, 6]
    assert records(run_folder)[-1]["losses"]["held_out"] == records(tmp_path)[-1]["losses"]["held_out"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-0000003", "step-0000006"]


def test_every_image_comes_once_in_an_epoch_and_those_held_out_never(latents):
    split = Split(CONFIG, len(latents.labels))
    batches = split.batches(start_batch=0, process_index=0, num_processes=1)
    seen = torch.cat([next(batches) for _ in range(5)]).tolist()
    assert len(split.train) == 20
    assert sorted(seen[:20]) == sorted(seen[20:]) == sorted(split.train.tolist())
    assert seen[:20] != seen[20:]
    assert not set(seen) & set(split.held_out.tolist())
    halves = [split.batches(start_batch=1, process_index=process, num_processes=2) for process in (0, 1)]
    assert torch.cat([next(half) for half in halves]).tolist() == seen[16:32]


def test_a_seed_gives_the_same_latent_alone_and_in_a_batch_and_another_seed_another(prior):
    together = draw(prior, [3, 7, 3], [4, 5, 6], steps=3, guidance=GuidanceConfig(scale=2.0))
    alone = draw(prior, [7], [5], steps=3, guidance=GuidanceConfig(scale=2.0))
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-4)
    assert not torch.allclose(together[0], together[2])
    other_class = draw(prior, [11], [5], steps=3, guidance=GuidanceConfig(scale=2.0))
    assert not torch.allclose(alone, other_class)


def test_noise_of_decoders_comes_from_other_seeds_than_noise_of_latents():
    assert min(decoder_seeds([0, MAX_SEED])) > MAX_SEED
    assert len(set(decoder_seeds(range(9)))) == 9


class Exact(nn.Module):
    """Knows one latent for each class, and zero for none: the velocity of all paths that end there."""

    no_class = 2

    def __init__(self):
        super().__init__()
        self.config = PriorConfig(shape=[6, 4], side=SIZE, labels=LABELS[:2], fingerprint="")
        self.ends = torch.stack([torch.full((6, 4), end) for end in (-1.0, 2.0, 0.0)])
        self.calls = 0

    def classes(self, labels):
        return torch.tensor([LABELS.index(label) for label in labels])

    def restore(self, latents):
        return latents

    def forward(self, x, t, classes):
        self.calls += 1
        return (x - self.ends[classes]) / t[:, None, None]


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_prior_that_knows_its_latents_draws_them_in_any_number_of_steps(steps):
    found = draw(Exact(), [3, 7], [0, 1], steps=steps, guidance=PLAIN)
    torch.testing.assert_close(found, Exact().ends[:2])


@pytest.mark.parametrize("scale", [0, 0.5, 1, 2])
@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.3, 0.6)])
def test_guidance_costs_the_evaluations_that_it_says(scale, interval):
    guidance, prior = GuidanceConfig(scale=scale, interval=interval), Exact()
    found = draw(prior, [7], [0], steps=4, guidance=guidance)
    assert prior.calls == evaluations(4, guidance)
    if interval == (0.0, 1.0):
        torch.testing.assert_close(found[0], scale * prior.ends[1])


def test_a_saved_prior_is_the_same_when_it_is_loaded(prior, tmp_path):
    save_prior(prior, tmp_path / "prior.safetensors")
    again = load_prior(tmp_path / "prior.safetensors")
    assert again.config == prior.config
    x, t, classes = torch.randn(2, 16, 16, generator=generator(0)), torch.tensor([0.2, 0.9]), torch.tensor([0, 3])
    assert torch.equal(again(x, t, classes), prior(x, t, classes))


def test_what_does_not_fit_is_one_line(place, run_folder, prior, latents, tmp_path):
    data, some = open_labelled(str(place / "images-0.parquet")), {"mirrored": False, "batch": 4}
    with pytest.raises(ConfigError, match=r"No image side is named, and the model takes any\. Pass --size"):
        encode(Tokenizer(presets.tiny()), *data, side=None, **some)
    with pytest.raises(ConfigError, match=r"Image side 64 does not fit this model\. It takes 32 x 32 only\."):
        encode(Tokenizer(presets.tiny_tokens()), *data, side=64, **some)
    with pytest.raises(ConfigError, match=r"2 names for 3 classes\. One for each is needed"):
        train(replace(CONFIG, names=["hat", "shoes"]), latents, tmp_path / "names")
    with pytest.raises(ConfigError, match=r"Class 4 is unknown\. Accepted: the 3 classes .* from 3 to 11\. Name"):
        draw(prior, [4], [0], steps=1, guidance=PLAIN)
    with pytest.raises(ConfigError, match=r"Seeds reach from 0 to 2147483648\. Accepted: 0 to 2147483647\. Pass"):
        draw(prior, [3, 3], [0, MAX_SEED + 1], steps=1, guidance=PLAIN)
    with pytest.raises(ConfigError, match=r"Prior steps 0 is less than 1\. Pass 1 or more"):
        draw(prior, [3], [0], steps=0, guidance=PLAIN)
    with pytest.raises(OutputError, match=r"holds a run already\. Pass --resume"):
        train(CONFIG, latents, run_folder)
    with pytest.raises(ConfigError, match=r"resume would change network\.width from 16 to 8\. A resume may"):
        train(replace(CONFIG, network=NetworkConfig(width=8, depth=1, heads=2)), latents, run_folder, resume=True)
    others = replace(latents, latents=latents.latents + 1)
    with pytest.raises(CheckpointError, match="does not fit this configuration"):
        train(CONFIG, others, run_folder, resume=True)
    with pytest.raises(DataError, match=r"24 images, of which 24 are held out\. More are needed\. Encode more"):
        train(replace(CONFIG, held_out=24), latents, tmp_path / "new")
    with pytest.raises(DataError, match="it is a file of another kind"):
        read_latents(run_folder / "prior.safetensors")
    with pytest.raises(CheckpointError, match=r"Cannot read prior .*: No such file"):
        load_prior(tmp_path / "prior.safetensors")
    with pytest.raises(DataError, match="No labelled images at"):
        open_labelled(str(tmp_path / "*.parquet"))
    pq.write_table(pa.table({"image": [b""]}), tmp_path / "bare.parquet")
    with pytest.raises(DataError, match="has no whole numbers in a column 'label'"):
        open_labelled(str(tmp_path / "bare.parquet"))
    with pytest.raises(ConfigError, match=r"batch_size 0 is less than 1\. Pass 1 to 65,536\."):
        replace(CONFIG, batch_size=0)
    with pytest.raises(ConfigError, match=r"class_dropout 1 is outside \[0, 1\)\."):
        replace(CONFIG, class_dropout=1)


def test_a_command_that_fails_says_why_in_one_line(place, run_folder, tmp_path, capsys):
    words = ["sample", str(run_folder), str(place / "other"), "--out", str(tmp_path / "samples.png")]
    assert generate.main(words) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: Model '")
    assert "has another encoder than that whose latents the prior draws." in line
    (tmp_path / "samples.png").write_text("precious")
    assert generate.main(words) == 1
    assert "samples.png exists already. Pass --force" in capsys.readouterr().err
    (tmp_path / "config.toml").write_text("stepz = 3", "utf-8")
    words = ["train", str(tmp_path / "config.toml"), "--latents", "none", "--out", str(tmp_path / "run")]
    assert generate.main(words) == 1
    assert "Unknown key 'stepz'." in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--samples", "--steps"])
def test_a_number_that_must_be_positive_is_a_usage_error(option, capsys):
    with pytest.raises(SystemExit, match="2"):
        generate.main(["sample", "run", "model", "--out", "samples.png", option, "0"])
    assert f"argument {option}: 0 is less than 1. Pass 1 or more." in capsys.readouterr().err


def test_the_recipe_is_accepted():
    config = load_training_config(ROOT / "recipes" / "generation" / "clothing.toml")
    assert config.steps > 0


def test_the_commands_of_the_pages_are_those_of_the_example():
    text = "\n".join(
        (ROOT / path).read_text("utf-8").replace("\\\n", " ")
        for path in ("docs/generation.md", "recipes/generation/clothing.toml", "recipes/README.md")
    )
    lines = re.findall(r"^#? *(python examples/generate\.py .*)$", text, re.MULTILINE)
    named = {generate.make_parser().parse_args(shlex.split(line, comments=True)[2:]).run.__name__ for line in lines}
    assert named == {"run_encode", "run_train", "run_sample", "run_evaluate"}
