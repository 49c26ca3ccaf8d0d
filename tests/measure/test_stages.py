"""What a latent leaves open, what each stage adds, and which stages of the released models work."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from skimage import data

import stepladder
from stepladder import Tokenizer, presets
from stepladder.cli import app
from stepladder.data import evaluation_images, open_source
from stepladder.errors import ConfigError, DataError
from stepladder.images import save_png, to_pil
from stepladder.measure.stages import contributions, residuals, silenced, working_from
from stepladder.sampling.randomness import generator
from stepladder.sampling.scales import down
from stepladder.tokenizer_config import LadderConfig

MODELS = Path(__file__).parents[2] / "models"


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for index, picture in enumerate((data.astronaut(), data.chelsea())):
        pixels = torch.from_numpy(picture[40:168, 60:188].copy()).permute(2, 0, 1)
        save_png(to_pil(pixels / 127.5 - 1), folder / f"{index}.png")
    return folder


def moved(**ladder) -> Tokenizer:
    """A tiny tokenizer away from its initial weights."""
    tokenizer = Tokenizer(replace(presets.tiny(), ladder=LadderConfig(num_stages=3, **ladder))).eval()
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator(1)))
    return tokenizer


def test_residuals_are_the_error_of_the_initial_estimate_at_each_scale(photographs):
    tokenizer = moved()
    found = residuals(tokenizer, open_source([str(photographs)]), size=64, limit=1)
    _, image = next(iter_images(photographs, 64))
    initial = tokenizer.decoder.network.context(tokenizer.encode(image[None]).latent).initial
    for value, factor in zip(found, (4, 2, 1), strict=True):
        assert value == pytest.approx(down(initial - image, factor).square().mean().sqrt().item(), rel=1e-4)
    assert len(residuals(tokenizer, open_source([str(photographs)]), size=64, stages=2)) == 2


def iter_images(folder: Path, size: int):
    return iter(evaluation_images(open_source([str(folder)]), size=size, limit=1))


@pytest.mark.parametrize("ladder", [{}, {"ends": [0.1, 0.06, 0.0], "residuals": [0.05, 0.09, 0.12]}])
def test_a_stage_whose_last_layers_are_zero_adds_nothing_and_is_not_missed(photographs, ladder):
    tokenizer = moved(**ladder)
    source = open_source([str(photographs)])
    rows = contributions(tokenizer, source, size=64, steps=2)
    assert [(row.stage, row.downscale) for row in rows] == [(0, 4), (1, 2), (2, 1)]
    assert all(row.added > 1e-4 for row in rows)
    assert rows[-1].loss_db != 0
    tokenizer.decoder.network = silenced(tokenizer.decoder.network)
    for row in contributions(tokenizer, source, size=64, steps=2):
        assert row.added == row.loss_db == 0


def test_a_stage_works_from_a_share_of_what_the_latent_leaves_open():
    measured = moved(ends=[0.1, 0.06, 0.0], residuals=[0.015, 0.09, 0.12]).schedule
    assert [working_from(stage) for stage in measured.stages] == pytest.approx([0.0003, 0.0018, 0.0024])
    assert {working_from(stage) for stage in moved().schedule.stages} == {1e-3}


def test_what_cannot_be_measured_is_one_line(photographs, tmp_path):
    source = open_source([str(photographs)])
    with pytest.raises(ConfigError, match=r"^The decoder makes no initial estimate, .* Pass another model\.$"):
        residuals(Tokenizer(presets.tiny_tokens()).eval(), source, size=32)
    with pytest.raises(ConfigError, match=r"^Image side 50 is not a multiple of 32\. Pass --size 32\.$"):
        contributions(moved(), source, size=50)
    (tmp_path / "no.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"^None of the 1 images of .* can be read\."):
        residuals(moved(), open_source([str(tmp_path)]), size=64)


def released() -> list[object]:
    """Every stage of every released model with an encoder of its own; the others cannot encode here."""
    cases: list[object] = []
    for name in ("photo", *sorted(folder.parent.name for folder in MODELS.glob("*/model.safetensors"))):
        folder = Path(stepladder.__file__).parent / "weights" / "photo" if name == "photo" else MODELS / name
        config = json.loads((folder / "config.json").read_text("utf-8"))["tokenizer"]
        stages = 0 if "fingerprint" in config["encoder"] else config["ladder"]["num_stages"]
        cases += [pytest.param(name, stage, id=f"{name}-{stage}") for stage in range(stages)]
    return cases


@pytest.fixture(scope="module")
def measured(photographs) -> Callable:
    """By the name of a released model: its ladder, and what its stages add."""

    @cache
    def measured(name):
        tokenizer = Tokenizer.from_pretrained(name if name == "photo" else MODELS / name)
        side = 64 if name.startswith("imagenet64") else 128
        return tokenizer.schedule, contributions(tokenizer, open_source([str(photographs)]), size=side, steps=1)

    return measured


@pytest.mark.parametrize(("name", "stage"), released())
def test_every_stage_of_a_released_model_works(measured, name, stage):
    schedule, rows = measured(name)
    assert rows[stage].added > working_from(schedule.stages[stage])


def test_the_command_prints_lines_to_paste_and_what_each_stage_adds(photographs, tmp_path, capsys):
    moved().save_pretrained(tmp_path / "model")
    words = ["schedule", str(tmp_path / "model"), str(photographs), "--size", "64", "--contributions"]
    with pytest.raises(SystemExit) as ended:
        app(words)
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("[tokenizer.ladder]\nnum_stages = 3\nends = [")
    assert "lost" in out
    with pytest.raises(SystemExit):
        app([*words, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert len(found["residuals"]) == len(found["ends"]) == len(found["contributions"]) == 3
    assert found["ends"][-1] == 0
