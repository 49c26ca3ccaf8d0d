"""Kinds of steps, on data whose exact answer is known: Gaussian images."""

import math

import pytest
import torch
from torch import Tensor

from denoiser_fakes import Exact
from stepladder.errors import ConfigError
from stepladder.sampling.denoiser import Denoised
from stepladder.sampling.grids import time_grid, time_grids
from stepladder.sampling.path import linear_estimate, noise_from_clean, path
from stepladder.sampling.randomness import generators
from stepladder.sampling.sampler import StageEnd, sample
from stepladder.sampling.scales import down, low_pass
from stepladder.sampling.stages import Stage, StageSchedule
from stepladder.sampling.steps import EULER, SamplerConfig, Span, evaluation_times, step

MEAN, SPREAD = 0.4, 0.2
KINDS = ("euler", "heun", "ancestral")
FULL = StageSchedule.uniform(1)


def gaussian(x: Tensor, u: Tensor, stage: Stage, previous: Denoised | None) -> Denoised:
    """The mean of X given x_u, for X = MEAN + SPREAD xi at full resolution, xi white.

    At a coarse scale the mean of blocks has a spread of SPREAD over the downscale. What `low_pass` keeps of x_u is
    (1-t) X + t n, what it removes (1-u)(1-e) X + t n: two problems with a scalar answer each.
    """
    spread = (SPREAD / stage.downscale) ** 2
    level, weight = stage.noise_level(u)[:, None, None, None], u[:, None, None, None]

    def gain(a: Tensor) -> Tensor:
        return a * spread / (a.square() * spread + level.square())

    if stage.t_start == 1:
        return Denoised(MEAN + gain(1 - level) * (x - (1 - level) * MEAN))
    low = low_pass(x)
    return Denoised(
        MEAN + gain(1 - level) * (low - (1 - level) * MEAN) + gain((1 - weight) * (1 - stage.t_end)) * (x - low)
    )


def ends(
    steps: int,
    sampler: SamplerConfig = EULER,
    *,
    schedule: StageSchedule = FULL,
    side: int = 64,
    seeds: tuple[int, ...] = (0,),
    denoiser=gaussian,
) -> list[StageEnd]:
    grids = time_grids(schedule, steps, sampler.shifts(schedule))
    draws = generators(seeds)
    return list(
        sample(denoiser, schedule, size=(side, side), generators=draws, grids=grids, sampler=sampler, channels=1)
    )


def image(steps: int, kind: str = "euler", **options) -> Tensor:
    return ends(steps, SamplerConfig(kind=kind), **options)[-1].clean


def flow_error(steps: int, kind: str) -> float:
    """Distance to the exact end of the flow, which takes noise n to MEAN + SPREAD n."""
    noise = torch.randn(1, 1, 64, 64, generator=generators([0])[0])
    return (image(steps, kind) - (MEAN + SPREAD * noise)).square().mean().sqrt().item()


def test_euler_has_order_1_and_heun_order_2():
    euler, heun = ([flow_error(steps, kind) for steps in (64, 128)] for kind in ("euler", "heun"))
    assert euler[0] / euler[1] == pytest.approx(2, rel=0.1)
    assert heun[0] / heun[1] == pytest.approx(4, rel=0.2)
    assert heun[0] < euler[0] / 5


def test_ancestral_steps_draw_the_spread_of_their_closed_form():
    """The variance of the state goes from v to (a' g + t' c (1 - a g) / t)^2 v + t'^2 (1 - c^2), with a = 1 - t and g
    the gain of the denoiser; the last step leaves g^2 v."""
    steps, variance = 6, 1.0
    times = [1 - i / steps for i in range(steps)]
    for t, t_next in zip(times, [*times[1:], 0.0], strict=True):
        gain = (1 - t) * SPREAD**2 / ((1 - t) ** 2 * SPREAD**2 + t**2)
        kept = t_next * (1 - t) / (t * (1 - t_next))
        along = (1 - t_next) * gain + t_next * kept * (1 - (1 - t) * gain) / t
        variance = along**2 * variance + t_next**2 * (1 - kept**2)
    found = image(steps, "ancestral", side=256)
    assert found.std().item() == pytest.approx(math.sqrt(variance), rel=0.02)
    assert found.mean().item() == pytest.approx(MEAN, abs=0.005)


def test_an_ancestral_step_is_the_posterior_of_ddpm():
    """x at t' given x at t and X has the mean a' X + k (x - a X), k = (a/a') t'^2 / t^2, and what is left of t'^2."""
    (stage,) = FULL.stages
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 1, 1, 256, 256, generator=generator)
    t, t_next = 0.8, 0.5
    x = (1 - t) * clean + t * noise
    span = Span(stage, torch.tensor([t]), torch.tensor([t_next]), torch.tensor([t_next - t]))
    found, _ = step("ancestral", x, Denoised(clean), span, lambda *_: Denoised(clean), generators([1]))
    ratio = (1 - t) / (1 - t_next)
    mean = (1 - t_next) * clean + ratio * t_next**2 / t**2 * (x - (1 - t) * clean)
    left = math.sqrt(t_next**2 - (ratio * t_next**2 / t) ** 2)
    drawn = (found - mean) / left
    assert drawn.std().item() == pytest.approx(1, abs=0.01)
    assert (drawn * x).mean().abs() < 0.01


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", [FULL, StageSchedule.from_ends([0.2, 0.1, 0.0]), StageSchedule.uniform(3)])
def test_many_steps_draw_white_images_of_the_right_mean_and_spread_on_any_ladder(kind: str, schedule: StageSchedule):
    steps = 100
    if kind == "ancestral":  # of order 1, with a larger constant, the more so where one stage spans all noise levels
        steps = 400 if schedule is FULL else 300
    found = image(steps, kind, schedule=schedule, side=128) - MEAN
    assert found.mean().abs() < 0.005
    assert found.std().item() == pytest.approx(SPREAD, rel=0.03)
    assert down(found).std().item() == pytest.approx(SPREAD / 2, rel=0.04)  # white: means of blocks say so


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("texture", [1.0, 0.3])
def test_an_exact_denoiser_recovers_the_image_with_every_sampler(kind: str, steps: int, texture: float):
    wanted = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    config = SamplerConfig(kind=kind, texture=texture)
    schedule = StageSchedule.from_ends([0.3, 0.1, 0.0])
    found = ends(steps, config, schedule=schedule, side=16, seeds=(0, 1), denoiser=Exact(wanted))
    torch.testing.assert_close(found[-1].clean, wanted, atol=1e-4, rtol=0)
    for end in found:
        noise = end.x - (1 - end.stage.t_end) * down(wanted, end.stage.downscale)
        assert noise.std().item() == pytest.approx(end.stage.t_end, rel=0.5, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_network_is_evaluated_at_the_times_that_are_counted(kind: str):
    schedule = StageSchedule.from_ends([0.3, 0.1, 0.0])
    exact = Exact(torch.zeros(1, 1, 16, 16))
    ends(3, SamplerConfig(kind=kind), schedule=schedule, side=16, denoiser=exact)
    counted = [(stage.index, u) for stage in schedule.stages for u in evaluation_times(stage, time_grid(3), kind)]
    assert [(stage, u.item()) for stage, u, _ in exact.shown] == [(i, pytest.approx(u)) for i, u in counted]
    assert len(counted) == {"euler": 9, "heun": 6 + 6 + 5, "ancestral": 9}[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_the_same_alone_and_in_a_batch(kind: str):
    schedule = StageSchedule.uniform(2)
    together = image(4, kind, schedule=schedule, seeds=(5, 6))
    alone, other = (image(4, kind, schedule=schedule, seeds=(seed,)) for seed in (6, 7))
    torch.testing.assert_close(together[1:], alone)
    assert not torch.allclose(alone, other)


def test_texture_scales_what_a_stage_draws():
    first, last = image(1), image(20)
    for texture in (0.0, 0.25, 0.75):
        found = ends(20, SamplerConfig(texture=texture))[-1]
        torch.testing.assert_close(found.clean, first + texture * (last - first))
        torch.testing.assert_close(found.x, found.clean)
    torch.testing.assert_close(first, torch.full_like(first, MEAN))  # the mean of all images that may be meant
    calm = ends(100, SamplerConfig(texture=0.5))[-1].clean
    assert calm.std().item() == pytest.approx(0.5 * SPREAD, rel=0.05)


def test_the_state_that_goes_on_holds_the_image_that_is_shown():
    """So that the next stage sees less texture at the scale before, and the same noise."""
    schedule = StageSchedule.from_ends([0.2, 0.0])
    plain, calm = (ends(10, SamplerConfig(texture=texture), schedule=schedule)[0] for texture in (1.0, 0.4))
    noises = [noise_from_clean(end.x, end.clean, torch.zeros(1), end.stage) for end in (plain, calm)]
    torch.testing.assert_close(*noises, atol=1e-4, rtol=0)
    assert (calm.clean - MEAN).std() < 0.45 * (plain.clean - MEAN).std()


def test_texture_changes_nothing_where_a_stage_takes_one_step():
    schedule = StageSchedule.uniform(3)
    full, calm = (ends(1, SamplerConfig(texture=texture), schedule=schedule)[-1].clean for texture in (1.0, 0.2))
    assert torch.equal(full, calm)


def test_the_denoiser_of_these_tests_is_the_linear_estimate_of_the_library():
    stage = StageSchedule.from_ends([0.0], residuals=[SPREAD]).stages[0]
    point = path(torch.full((1, 1, 8, 8), MEAN), torch.randn(1, 1, 8, 8), torch.tensor([0.4]), stage)
    wanted = linear_estimate(point.x, torch.full_like(point.x, MEAN), torch.tensor([0.4]), stage).clean
    torch.testing.assert_close(gaussian(point.x, torch.tensor([0.4]), stage, None).clean, wanted)


def test_a_shift_moves_the_times_of_all_stages_or_of_each():
    schedule = StageSchedule.uniform(3)
    assert SamplerConfig(shift=(0.5,)).shifts(schedule) == (0.5, 0.5, 0.5)
    assert SamplerConfig(shift=(0.5, 1.0, 2.0)).shifts(schedule) == (0.5, 1.0, 2.0)
    assert time_grids(schedule, 4, (0.5, 1.0, 2.0)) == [time_grid(4, shift) for shift in (0.5, 1.0, 2.0)]
    measured = StageSchedule.from_ends([0.1, 0.06, 0.0], residuals=[0.05, 0.09, 0.12])
    assert EULER.shifts(measured) == tuple(stage.time_shift for stage in measured.stages)
    with pytest.raises(ConfigError, match=r"2 time shifts do not fit 3 stages\. Pass one for all stages, or one"):
        SamplerConfig(shift=(0.5, 1.0)).shifts(schedule)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        pytest.param(
            {"kind": "leap"},
            "Sampler 'leap' is unknown. Accepted: euler, heun, ancestral.",
            marks=pytest.mark.untyped,
        ),
        ({"texture": 1.5}, r"Texture 1.5 is outside \[0, 1\]. Pass 1 for all of it, usually 0.5 to 1."),
        ({"texture": math.nan}, "Texture nan is outside"),
        ({"shift": ()}, r"Time shift \[\] is not positive numbers up to 100. Pass one for all stages, or one for each"),
        ({"shift": (0.5, 0.0)}, "Time shift"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict, text: str):
    with pytest.raises(ConfigError, match=text):
        SamplerConfig(**options)
