"""How a tokenizer is judged in a run: when, on what, and what each stage adds."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from stepladder import Tokenizer, presets
from stepladder.errors import ConfigError
from stepladder.images import load_image
from stepladder.sampling.path import path
from stepladder.sampling.randomness import generator
from stepladder.sampling.scales import down
from stepladder.training import journal
from stepladder.training.autoencoder import train
from stepladder.training.config import LossConfig, OptimiserConfig
from stepladder.training.validation import ImageValidation, reconstruct, stage_residuals


def with_validation(config, photographs, **changes):
    data = replace(config.data, validation=[str(photographs)], validation_images=2, **changes)
    return replace(config, data=data, grid_every=2)


def images(count=4, side=32):
    return torch.rand(count, 3, side, side, generator=generator(3)) * 2 - 1


def moved(config):
    tokenizer = Tokenizer(config)
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator(parameter.numel())))
    return tokenizer.eval()


# ------------------------------------------------------------------------------------------------------------- when


def test_a_token_model_is_validated_at_its_own_side(make_config, photographs, tmp_path):
    config = with_validation(make_config(steps=2, tokenizer=presets.tiny_tokens()), photographs)
    train(config, tmp_path)
    assert load_image(tmp_path / "grids" / "step-0000002.png").height == 3 * (21 + 32)


def test_another_side_is_refused_before_the_run_starts(make_config, photographs, tmp_path):
    config = make_config(steps=2, tokenizer=presets.tiny_tokens())
    text = (
        r"^data\.validation_size 256 is not 32, the one side that the model takes\. Set it to that, or leave it out\.$"
    )
    with pytest.raises(ConfigError, match=text):
        train(with_validation(config, photographs, validation_size=256), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_of_any_side_is_validated_at_256_unless_another_is_named(make_config, photographs, tmp_path):
    train(with_validation(make_config(steps=1), photographs), tmp_path)
    assert load_image(tmp_path / "grids" / "step-0000001.png").width == 2 * 256 + 8


def test_a_run_that_fails_to_validate_has_its_checkpoint(make_config, photographs, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no picture")

    config = with_validation(make_config(steps=4, save_every=2), photographs, validation_size=32)
    train(config, tmp_path, stop_after=1)
    monkeypatch.setattr(journal, "save_png", fail)
    with pytest.raises(RuntimeError, match="no picture"):
        train(config, tmp_path, resume=True)
    assert sorted(place.name for place in (tmp_path / "checkpoints").iterdir()) == ["step-0000001", "step-0000002"]


def test_what_cannot_be_drawn_shows_before_the_first_step(make_config, photographs, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no picture")

    monkeypatch.setattr(journal, "save_png", fail)
    shown = []
    with pytest.raises(RuntimeError, match="no picture"):
        train(with_validation(make_config(), photographs, validation_size=32), tmp_path, on_record=shown.append)
    assert not shown


def test_residuals_are_in_the_first_record_after_every_few_hundred_steps(make_config):
    validation = ImageValidation(make_config(steps=1001, log_every=20), side=32, stride=8)
    assert [step for step in range(1002) if validation.due(step)] == [260, 500, 760, 1000, 1001]


# ---------------------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize(("side", "line"), [(32, 21), (512, 24)])
def test_rows_of_a_grid_have_captions_of_which_nothing_is_cut_off(side, line):
    tokenizer = moved(presets.tiny())
    numbers, picture = reconstruct(tokenizer, images(2, side).split(1), steps=[1, 2])
    assert set(numbers) == {"initial", "1", "2"}
    assert picture.height == 4 * (line + side)
    assert picture.width >= 2 * side + 8
    for row in range(4):
        top = row * (line + side)
        band = np.asarray(picture.crop((0, top, picture.width, top + line)).convert("L")) < 128
        heights = np.flatnonzero(band.any(axis=1))
        assert heights[-1] - heights[0] >= 8
        assert not band[:, -2:].any()
        assert not band[[0, -1]].any()


# --------------------------------------------------------------------------------------------------------- residuals


@pytest.mark.parametrize("preset", [presets.tiny, presets.tiny_tokens, presets.imagenet64])
def test_a_fresh_network_adds_nothing_and_a_trained_one_something_at_every_stage(preset):
    config = preset()
    side = 64 if preset is presets.imagenet64 else 32
    assert stage_residuals(Tokenizer(config).eval(), images(2, side), seed=0) == [0.0] * 3
    tokenizer = moved(config)
    before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    found = stage_residuals(tokenizer, images(2, side), seed=0)
    assert all(value > 0 for value in found)
    assert found == stage_residuals(tokenizer, images(2, side), seed=0)
    assert all(torch.equal(value, before[name]) for name, value in tokenizer.state_dict().items())


def test_a_residual_is_the_deviation_of_what_the_last_layer_adds():
    config = replace(presets.tiny(), ladder=replace(presets.tiny().ladder, num_stages=1))
    tokenizer = moved(config)
    (found,) = stage_residuals(tokenizer, images(), seed=5)
    out = tokenizer.decoder.network.networks[0].out
    with torch.no_grad():
        out.weight.mul_(3)
        out.bias.mul_(3)
    (three,) = stage_residuals(tokenizer, images(), seed=5)
    assert three == pytest.approx(3 * found, rel=1e-4)


def test_records_hold_residuals_and_a_stage_that_adds_nothing_is_a_warning(make_config, tmp_path, caplog):
    rates = OptimiserConfig(learning_rate=1e-12, warmup_steps=0)
    config = make_config(steps=101, log_every=50, optimiser=rates, batch_size=1, save_every=101)
    with caplog.at_level(logging.WARNING):
        train(config, tmp_path)
    records = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert [record["stage_residuals"] is None for record in records] == [True, True, False]
    assert len(records[-1]["stage_residuals"]) == 3
    lines = [line.getMessage() for line in caplog.records if "the network adds" in line.getMessage()]
    assert [line[:8] for line in lines] == ["Stage 0:", "Stage 1:", "Stage 2:"]
    assert "at step 101. Below 0.001 the stage does nothing" in lines[0]


def test_a_run_that_has_not_warmed_up_is_not_warned(make_config, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        train(make_config(steps=2, optimiser=OptimiserConfig(learning_rate=1e-12)), tmp_path)
    assert "the network adds" not in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ends", "residuals"),
    [([0.11, 0.07, 0.0], [0.05, 0.09, 0.12]), ([0.15, 0.11, 0.07, 0.0], [0.03, 0.05, 0.09, 0.12])],
)
def test_after_200_steps_every_stage_hears_image_latent_and_noise_level(make_config, tmp_path, ends, residuals):
    stages = len(ends)
    ladder = replace(presets.tiny().ladder, num_stages=stages, ends=ends, residuals=residuals)
    config = make_config(
        steps=200,
        tokenizer=replace(presets.tiny(), ladder=ladder),
        loss=LossConfig(perceptual_weight=0.0, target="balanced"),
        optimiser=OptimiserConfig(learning_rate=3e-3, warmup_steps=10),
        batch_size=4,
        save_every=200,
        log_every=50,
    )
    if stages == 4:
        config = replace(config, data=replace(config.data, crop=replace(config.data.crop, size=64, min_scale=0.5)))
    tokenizer = Tokenizer.from_pretrained(train(config, tmp_path))
    side = config.data.crop.size
    pictures, noise = images(2, side), generator(1)
    latent = tokenizer.encode(pictures).latent
    schedule, network = tokenizer.schedule, tokenizer.decoder.network

    def added(x, u, stage, latent, previous):
        """What the network says beyond its base, which hears everything anyway."""
        context = network.bind(latent)
        with torch.no_grad():
            full = context(x, u, stage, previous)
            kept = [(layer, {k: v.clone() for k, v in layer.state_dict().items()}) for layer in network.output_layers]
            for layer in network.output_layers:
                for parameter in layer.parameters():
                    parameter.zero_()
            base = context(x, u, stage, previous)
            for layer, weights in kept:
                layer.load_state_dict(weights)
        return full.clean - base.clean, full

    previous = None
    for stage in schedule.stages:
        clean = down(pictures, stage.downscale)
        drawn = [torch.randn(clean.shape, generator=noise) for _ in range(2)]
        u = torch.full((2,), 0.5)
        x = path(clean, drawn[0], u, stage).x
        own, full = added(x, u, stage, latent, previous)
        others = {
            "x": added(path(clean, drawn[1], u, stage).x, u, stage, latent, previous)[0],
            "latent": added(x, u, stage, latent.flip(0), previous)[0],
            "noise level": added(x, torch.full((2,), 0.9), stage, latent, previous)[0],
        }
        assert own.std() > 1e-3, f"stage {stage.index} adds nothing"
        for name, other in others.items():
            assert (own - other).std() > 0.01 * own.std(), f"stage {stage.index} does not hear {name}"
        previous = full
