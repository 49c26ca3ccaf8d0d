"""The example that draws images: a prior on the latents of a tokenizer, small enough to train here."""

import io
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
from examples.generation.config import TrainingConfig, load_training_config
from examples.generation.latents import LabelledLatents, encode, open_labelled, read_latents
from examples.generation.model import NetworkConfig, Prior, PriorConfig, load_prior, save_prior
from examples.generation.sampling import MAX_SEED, decoder_seeds, draw, evaluations
from examples.generation.training import Split, flow_loss, train
from stepladder import CheckpointError, ConfigError, Tokenizer, presets
from stepladder.errors import DataError, OutputError
from stepladder.images import load_image, to_tensor
from stepladder.losses import LocalTimes
from stepladder.sampling.guidance import GuidanceConfig
from stepladder.sampling.randomness import generator
from stepladder.training.config import OptimiserConfig

ROOT = Path(__file__).parents[2]
LABELS = [3, 7, 11]
NETWORK = NetworkConfig(width=16, depth=1, heads=2)
PLAIN = GuidanceConfig()
CONFIG = TrainingConfig(
    steps=6,
    batch_size=8,
    network=NETWORK,
    optimiser=OptimiserConfig(learning_rate=1e-2, warmup_steps=1),
    held_out=4,
    log_every=2,
    save_every=3,
)
TOML = """
steps = 2
batch_size = 4
held_out = 4

[network]
width = 16
depth = 1
"""


def moved(config, seed):
    """A tokenizer that has left its initial weights, so that latents and noise show in its images."""
    tokenizer = Tokenizer(config)
    with torch.no_grad():
        for name, parameter in sorted(tokenizer.named_parameters()):
            # The seed of the weights of the encoder and of the decoder.
            draw_ = generator(seed if name.startswith(("encoder", "bottleneck")) else 99)
            parameter += 0.2 * torch.randn(parameter.shape, generator=draw_)
    return tokenizer.eval()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tokenizer, one of another encoder, and a labelled data set of 24 images."""
    folder = tmp_path_factory.mktemp("generation")
    torch.manual_seed(0)
    moved(presets.tiny_tokens(), 1).save_pretrained(folder / "tiny")
    moved(presets.tiny_tokens(), 2).save_pretrained(folder / "other")
    rows = []
    for i in range(24):
        pixels = np.random.default_rng(i).integers(0, 128, (32, 32, 3), dtype=np.uint8)
        pixels[..., i % 3] += 96
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        rows.append({"bytes": buffer.getvalue(), "path": f"{i}.png"})
    for part in range(2):
        columns = {"image": rows[12 * part : 12 * part + 12], "label": [LABELS[i % 3] for i in range(12)]}
        pq.write_table(pa.table(columns), folder / f"images-{part}.parquet")
    return folder


@pytest.fixture(scope="module")
def latents(place) -> LabelledLatents:
    source, labels = open_labelled(str(place / "images-*.parquet"))
    return encode(Tokenizer.from_pretrained(place / "tiny"), source, labels, mirrored=True, batch=7)


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
    (tmp_path / "config.toml").write_text(
        "steps = 2\nbatch_size = 4\nheld_out = 4\n[network]\nwidth = 16\ndepth = 1", "utf-8"
    )
    models = [f"{place / 'tiny'}@2", f"{place / 'tiny'}@1"]
    draws = ["--steps", "2", "--seed", "5"]

    assert generate.main(["encode", str(place / "tiny"), images, "--out", str(latents), "--mirrored"]) == 0
    assert "2 x 24 x 6 x 4" in capsys.readouterr().out
    words = ["train", str(tmp_path / "config.toml"), "--latents", str(latents), "--out", str(run)]
    assert generate.main(words) == 0
    assert "step 2/2  loss " in capsys.readouterr().err

    words = ["sample", str(run), *models, "--classes", "3", "11", "--samples", "3", *draws, "--out"]
    assert generate.main([*words, str(tmp_path / "samples.png")]) == 0
    assert "classes 3, 11 from top to bottom" in capsys.readouterr().out
    with Image.open(tmp_path / "samples.png") as picture:
        block = 3 * 64 + 2 * 4
        assert picture.size == (2 * block + 24, 2 * 64 + 4 + 32)
        left, right = (np.asarray(picture)[32:, start : start + block] for start in (0, block + 24))
        assert not np.array_equal(left, right)

    words = ["evaluate", str(run), images, *models, "--data-name", "noise", "--batch", "10", *draws, "--out"]
    assert generate.main([*words, str(tmp_path / "record.json")]) == 0
    record = json.loads((tmp_path / "record.json").read_text("utf-8"))
    assert tuple(record) == tables.RECORD_KEYS
    assert record["seed"] == 5
    assert " noise " in record["command"]
    assert images not in record["command"]
    report = record["report"]
    assert (report["images"], report["size"], report["data"]) == (24, 32, "noise")
    assert [row["network_evaluations"] for row in report["rows"]] == [6, 3]
    assert report["prior"]["network_evaluations"] == 5
    for row in report["rows"]:
        assert all(row[key] > 0 for key in ("seconds_per_image", "prior_seconds_per_image", "gflop_per_image"))
        assert row["fd_reconstructions"] > 0
        assert row["fd_efficientnet_lite2"] > 0
    assert "`tiny@1`" in tables.render(record)


class Mean(nn.Module):
    """Features that need no weights."""

    def pooled(self, images):
        return images.mean(dim=3).flatten(1)[:, ::8]  # (B, 12)


def test_latents_are_those_of_the_tokenizer_as_they_are_and_mirrored(place, latents):
    tokenizer = Tokenizer.from_pretrained(place / "tiny")
    source, labels = open_labelled(str(place / "images-*.parquet"))
    images = torch.stack([to_tensor(load_image(source.read(i))) for i in (0, 13)])
    assert latents.latents.shape == (2, 24, 6, 4)
    assert latents.labels.tolist() == labels == [LABELS[i % 3] for i in range(12)] * 2
    for view, seen in enumerate((images, images.flip(-1))):
        expected = tokenizer.encode(seen).latent
        torch.testing.assert_close(latents.latents[view, [0, 13]].float(), expected, rtol=1e-3, atol=1e-3)


def test_the_prior_works_on_latents_of_zero_mean_and_unit_variance(latents, tmp_path):
    prior = load_prior(train(replace(CONFIG, steps=1, held_out=1), latents, tmp_path))
    found = prior.normalise(latents.latents[0].float())
    assert found.mean(0).abs().max() < 0.3
    assert (found.std(0) - 1).abs().max() < 0.3
    torch.testing.assert_close(prior.restore(found), latents.latents[0].float())


def test_the_loss_falls_on_a_fixed_batch(latents):
    torch.manual_seed(0)
    prior = Prior(PriorConfig(tokens=6, channels=4, labels=LABELS, fingerprint="", network=NETWORK))
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
    torch.testing.assert_close(together[1:2], alone)
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
        self.config = PriorConfig(tokens=6, channels=4, labels=LABELS[:2], fingerprint="")
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
    x, t, classes = torch.randn(2, 6, 4, generator=generator(0)), torch.tensor([0.2, 0.9]), torch.tensor([0, 3])
    assert torch.equal(again(x, t, classes), prior(x, t, classes))


def test_what_does_not_fit_is_one_line(place, run_folder, prior, latents, tmp_path):
    tiny = presets.tiny()
    with pytest.raises(ConfigError, match=r"Latents of a model are grids \(f8c16\)\. Accepted: .* tokens\."):
        encode(Tokenizer(tiny), *open_labelled(str(place / "images-0.parquet")), mirrored=False, batch=4)
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
    with pytest.raises(ConfigError, match=r"batch_size 0 is less than 1\. Pass 1 or more"):
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
    config = load_training_config(ROOT / "recipes" / "generation" / "imagenet64.toml")
    assert config.steps > 0


def test_the_commands_of_the_pages_are_those_of_the_example():
    text = "\n".join(
        (ROOT / path).read_text("utf-8").replace("\\\n", " ")
        for path in ("docs/generation.md", "recipes/generation/imagenet64.toml", "recipes/README.md")
    )
    lines = re.findall(r"^#? *(python examples/generate\.py .*)$", text, re.MULTILINE)
    named = {generate.make_parser().parse_args(shlex.split(line, comments=True)[2:]).run.__name__ for line in lines}
    assert named == {"run_encode", "run_train", "run_sample", "run_evaluate"}
