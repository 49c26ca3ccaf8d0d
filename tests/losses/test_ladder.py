"""The flow loss of a ladder."""

import math
from typing import get_args

import pytest
import torch

from stepladder.losses import (
    NOISE_FLOOR_IN_TRAINING,
    FeaturePyramid,
    FlowTarget,
    LocalTimes,
    draw_stages,
    ladder_loss,
    sigmoid_weight,
)
from stepladder.sampling.denoiser import Denoised
from stepladder.sampling.randomness import generator
from stepladder.sampling.scales import down
from stepladder.sampling.stages import Stage, StageSchedule

TARGETS = get_args(FlowTarget)


class Biased:
    """Knows the image but for an error that it adds; remembers what it was shown."""

    def __init__(self, images: torch.Tensor, error: float = 0.0) -> None:
        self.images, self.error = images, error
        self.shown: list[tuple[int, tuple[int, ...]]] = []

    def __call__(self, x: torch.Tensor, u: torch.Tensor, stage: Stage, previous: Denoised | None) -> Denoised:
        self.shown.append((stage.index, tuple(x.shape)))
        clean = down(self.images, stage.downscale) + self.error
        return Denoised(clean)


class Blurred(FeaturePyramid):
    """A pyramid of two scales."""

    def pyramid(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [images, down(images)]


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(4, 3, 16, 24, generator=generator(0)) * 2 - 1


def away_from_the_end(draws):
    """Times at which the clamp of the noise level does not act."""
    for draw in draws:
        draw.u.clamp_(min=0.2)
    return draws


@pytest.mark.parametrize("num_stages", [1, 2, 3])
@pytest.mark.parametrize("target", TARGETS)
def test_an_exact_denoiser_has_no_loss_at_any_stage(images, num_stages, target):
    schedule = StageSchedule.uniform(num_stages)
    draws = away_from_the_end(draw_stages(schedule, images, generator(1)))
    parts = ladder_loss(Biased(images), schedule, images, images, draws, target=target, features=Blurred())
    assert len(parts.flow) == num_stages
    assert all(part.item() == pytest.approx(0, abs=1e-8) for part in parts.flow)
    assert parts.perceptual.item() == pytest.approx(0, abs=1e-8)
    assert parts.initial == 0


def test_every_stage_is_run_once_at_its_own_side(images):
    schedule, denoiser = StageSchedule.uniform(3), Biased(images)
    draws = draw_stages(schedule, images, generator(1))
    ladder_loss(denoiser, schedule, images, images, draws, target="clean", features=None)
    assert denoiser.shown == [(0, (4, 3, 4, 6)), (1, (4, 3, 8, 12)), (2, (4, 3, 16, 24))]


def test_the_clean_loss_is_the_mean_squared_error_of_the_image(images):
    schedule = StageSchedule.uniform(3)
    draws = draw_stages(schedule, images, generator(1))
    parts = ladder_loss(Biased(images, 0.5), schedule, images, images + 0.1, draws, target="clean", features=None)
    assert [part.item() for part in parts.flow] == pytest.approx([0.25] * 3)
    assert parts.initial.item() == pytest.approx(0.01, rel=1e-4)
    assert parts.perceptual == 0


def test_the_velocity_loss_is_the_error_over_the_squared_noise_level(images):
    schedule = StageSchedule.uniform(1)
    draws = draw_stages(schedule, images, generator(1))
    draws[0].u.fill_(0.5)
    parts = ladder_loss(Biased(images, 0.1), schedule, images, images, draws, target="velocity", features=None)
    assert parts.flow[0].item() == pytest.approx(0.1**2 / 0.5**2, rel=1e-3)


@pytest.mark.parametrize(("time", "weight"), [(1.0, 1.0), (0.5, 2.0), (0.1, 10.0), (0.0, 1 / NOISE_FLOOR_IN_TRAINING)])
def test_the_balanced_loss_weighs_an_error_by_the_start_over_the_noise_level(images, time, weight):
    schedule = StageSchedule.uniform(1)
    draws = draw_stages(schedule, images, generator(1))
    draws[0].u.fill_(time)
    parts = ladder_loss(Biased(images, 0.1), schedule, images, images, draws, target="balanced", features=None)
    assert parts.flow[0].item() == pytest.approx(0.1**2 * weight, rel=1e-3)


@pytest.mark.parametrize("num_stages", [1, 3])
def test_the_loss_is_finite_on_the_closed_time_range(images, num_stages):
    schedule = StageSchedule.uniform(num_stages)
    for time in (0.0, 1.0):
        draws = draw_stages(schedule, images, generator(1))
        for draw in draws:
            draw.u.fill_(time)
        for target in TARGETS:
            parts = ladder_loss(Biased(images, 0.1), schedule, images, images, draws, target=target, features=None)
            assert all(math.isfinite(part) and part < 100 for part in parts.flow)


def test_the_perceptual_part_is_that_of_the_last_stage(images):
    schedule = StageSchedule.uniform(2)
    draws = draw_stages(schedule, images, generator(1))

    def wrong_at_the_first_stage(x, u, stage, previous):
        return Biased(images, 0.5 if stage.index == 0 else 0.0)(x, u, stage, previous)

    parts = ladder_loss(wrong_at_the_first_stage, schedule, images, images, draws, target="clean", features=Blurred())
    assert parts.perceptual.item() == pytest.approx(0, abs=1e-6)
    assert parts.flow[0] > 0.1


def test_without_an_initial_estimate_there_is_no_loss_of_it(images):
    schedule = StageSchedule.uniform(2)
    draws = draw_stages(schedule, images, generator(1))
    parts = ladder_loss(Biased(images, 0.1), schedule, images, None, draws, target="clean", features=None)
    assert parts.initial is None
    assert [part.item() for part in parts.flow] == pytest.approx([0.01] * 2, rel=1e-4)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("num_stages", [1, 3])
def test_a_sigmoid_weight_multiplies_the_error_of_each_image_by_that_of_its_noise_level(images, num_stages, target):
    schedule, one = StageSchedule.uniform(num_stages), images[:1]
    draws = draw_stages(schedule, one, generator(1))

    def flow(**weighting):
        parts = ladder_loss(Biased(one, 0.1), schedule, one, one, draws, target=target, features=None, **weighting)
        return torch.stack(parts.flow)

    levels = [stage.noise_level(draw.u) for stage, draw in zip(schedule.stages, draws, strict=True)]
    weights = sigmoid_weight(torch.cat(levels).clamp_min(NOISE_FLOOR_IN_TRAINING), bias=-2.0)
    torch.testing.assert_close(flow(weighting="sigmoid", weighting_bias=-2.0), weights * flow())


@pytest.mark.parametrize("num_stages", [1, 3])
def test_the_weighted_loss_is_finite_on_the_closed_time_range(images, num_stages):
    schedule = StageSchedule.uniform(num_stages)
    for time in (0.0, 1.0):
        draws = draw_stages(schedule, images, generator(1))
        for draw in draws:
            draw.u.fill_(time)
        for target in TARGETS:
            parts = ladder_loss(
                Biased(images, 0.1), schedule, images, images, draws, target=target, features=None, weighting="sigmoid"
            )
            assert all(math.isfinite(part) and part < 100 for part in parts.flow)


def test_what_a_stage_finds_is_handed_to_the_next_without_a_gradient(images):
    schedule, handed = StageSchedule.uniform(3), []

    def watched(x, u, stage, previous):
        handed.append(previous)
        images.requires_grad_()
        return Biased(images, 0.25)(x, u, stage, previous)

    ladder_loss(
        watched,
        schedule,
        images,
        images,
        draw_stages(schedule, images, generator(1)),
        target="clean",
        features=None,
    )
    assert handed[0] is None
    for previous, downscale in zip(handed[1:], (4, 2), strict=True):
        torch.testing.assert_close(previous.clean, down(images, downscale) + 0.25)
        assert not previous.clean.requires_grad


def test_a_shift_below_one_draws_low_noise_levels_more_often(images):
    schedule = StageSchedule.uniform(1)
    many = images[:1].expand(1000, -1, -1, -1)
    (plain,), (shifted,) = (
        draw_stages(schedule, many, generator(1), times=LocalTimes(shift=shift)) for shift in (1.0, 0.5)
    )
    torch.testing.assert_close(shifted.u, 0.5 * plain.u / (1 - 0.5 * plain.u))
    assert plain.u.median().item() == pytest.approx(1 / 2, abs=0.01)
    assert shifted.u.median().item() == pytest.approx(1 / 3, abs=0.01)
    assert 0 < shifted.u.min() < shifted.u.max() <= 1


def test_draws_follow_from_the_generator_and_fit_each_stage(images):
    schedule = StageSchedule.uniform(3)
    first, again, other = (draw_stages(schedule, images, generator(seed)) for seed in (1, 1, 2))
    assert [draw.noise.shape for draw in first] == [(4, 3, 4, 6), (4, 3, 8, 12), (4, 3, 16, 24)]
    for one, same, different in zip(first, again, other, strict=True):
        assert one.u.dtype == torch.float32
        assert torch.equal(one.noise, same.noise)
        assert torch.equal(one.u, same.u)
        assert not torch.equal(one.noise, different.noise)
        assert 0 < one.u.min() <= one.u.max() <= 1
        assert sorted((one.u * 4).ceil().tolist()) == [1, 2, 3, 4]
