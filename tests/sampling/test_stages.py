"""The ladder: noise levels, white noise after every jump, and the path inside a stage."""

import math
from itertools import pairwise

import pytest
import torch

from stepladder.sampling import flow
from stepladder.sampling.path import clean_from_velocity, linear_estimate, path, velocity_from_clean
from stepladder.sampling.randomness import generator, generators
from stepladder.sampling.scales import block_noise, down, jump, renoised_level, up
from stepladder.sampling.stages import Stage, StageSchedule, proposed_ends

GAMMAS = [0.05, 0.2, 0.3, 1 / 3]


@pytest.mark.parametrize(
    ("num_stages", "starts", "ends"),
    [
        (1, [1], [0]),
        (2, [1, 2 / 3], [1 / 2, 0]),
        (3, [1, 0.8, 0.5], [2 / 3, 1 / 3, 0]),
        (4, [1, 6 / 7, 2 / 3, 2 / 5], [3 / 4, 1 / 2, 1 / 4, 0]),
    ],
)
def test_starts_and_ends_of_the_stages(num_stages: int, starts: list[float], ends: list[float]) -> None:
    stages = StageSchedule.uniform(num_stages).stages
    assert [stage.t_start for stage in stages] == pytest.approx(starts, abs=1e-12)
    assert [stage.t_end for stage in stages] == pytest.approx(ends, abs=1e-12)
    assert [stage.downscale for stage in stages] == [2 ** (num_stages - 1 - i) for i in range(num_stages)]
    assert stages[0].t_start == 1.0
    assert stages[-1].t_end == 0.0


def test_noise_coordinates_tile_the_unit_interval() -> None:
    stages = StageSchedule.uniform(4).stages
    assert stages[0].coordinate_start == 1.0
    assert stages[-1].coordinate_end == 0.0
    for before, after in pairwise(stages):
        assert before.coordinate_end == after.coordinate_start


@pytest.mark.parametrize("gamma", GAMMAS)
def test_renoised_level_is_the_share_of_noise_after_a_jump(gamma: float) -> None:
    for t_end in (0.1, 1 / 3, 2 / 3, 0.9):
        a = 1 - t_end
        alpha = 1 / (a + t_end * math.sqrt(1 + 1 / gamma))
        assert renoised_level(t_end, gamma) == pytest.approx(1 - alpha * a)
        if gamma == 1 / 3:
            assert renoised_level(t_end, gamma) == pytest.approx(2 * t_end / (1 + t_end))


@pytest.mark.parametrize("gamma", GAMMAS)
def test_block_noise_has_unit_variance_and_negative_correlation_in_blocks(gamma: float) -> None:
    noise = block_noise((1, 4, 512, 512), gamma, generator(0))
    covariance = _block_covariance(noise)
    expected = torch.eye(4) * (1 + gamma) - gamma
    torch.testing.assert_close(covariance, expected, atol=0.01, rtol=0)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("t_end", [1 / 4, 1 / 3, 2 / 3])
def test_the_jump_makes_the_noise_white(gamma: float, t_end: float) -> None:
    image = torch.ones(1, 4, 256, 256)
    noise = torch.randn(image.shape, generator=generator(1))
    x = flow.interpolate(image, noise, torch.tensor([t_end]))
    after = jump(x, t_end=t_end, gamma=gamma, generators=[generator(2)])
    level = renoised_level(t_end, gamma)
    assert after.mean().item() == pytest.approx(1 - level, abs=5e-3)
    residue = (after - (1 - level)) / level
    torch.testing.assert_close(_block_covariance(residue), torch.eye(4), atol=0.02, rtol=0)
    for shift in (1, 2):  # nor is there any correlation across the borders of blocks
        assert (residue[..., shift:] * residue[..., :-shift]).mean().abs() < 0.01
        assert (residue[..., shift:, :] * residue[..., :-shift, :]).mean().abs() < 0.01


def test_the_jump_of_an_image_does_not_depend_on_its_batch() -> None:
    x = torch.randn(3, 3, 4, 4, generator=generator(0))
    together = jump(x, t_end=0.5, gamma=1 / 3, generators=generators([5, 6, 7]))
    alone = jump(x[1:2], t_end=0.5, gamma=1 / 3, generators=generators([6]))
    assert torch.equal(together[1:2], alone)


def test_up_after_down_is_a_projection() -> None:
    x = torch.randn(1, 3, 8, 8, generator=generator(0))
    torch.testing.assert_close(down(up(x)), x)
    once = up(down(x))
    torch.testing.assert_close(up(down(once)), once)
    torch.testing.assert_close(down(down(x)), down(x, 4))


@pytest.mark.parametrize("num_stages", [1, 2, 3, 4])
def test_a_path_starts_where_the_jump_lands_and_ends_at_the_next_noise_level(num_stages: int) -> None:
    for stage in StageSchedule.uniform(num_stages).stages:
        clean, noise = _clean_and_noise()
        start, end = (path(clean, noise, torch.full((2,), u), stage).x for u in (1.0, 0.0))
        rough = clean if stage.index == 0 else up(down(clean))
        torch.testing.assert_close(start, (1 - stage.t_start) * rough + stage.t_start * noise)
        torch.testing.assert_close(end, (1 - stage.t_end) * clean + stage.t_end * noise)
        torch.testing.assert_close(path(clean, noise, torch.full((2,), 0.3), stage).velocity, start - end)


def test_one_stage_is_the_ordinary_path_bit_for_bit() -> None:
    (stage,) = StageSchedule.uniform(1).stages
    clean, noise = _clean_and_noise()
    u = torch.tensor([0.2, 0.7])
    point = path(clean, noise, u, stage)
    assert torch.equal(point.x, flow.interpolate(clean, noise, u))
    assert torch.equal(point.velocity, flow.velocity(clean, noise))
    assert torch.equal(stage.noise_level(u), u)
    assert torch.equal(stage.coordinate(u), u)


@pytest.mark.parametrize("num_stages", [1, 2, 3, 4])
@pytest.mark.parametrize("u", [0.05, 0.5, 1.0])
def test_clean_to_velocity_to_clean_is_the_identity(num_stages: int, u: float) -> None:
    for stage in StageSchedule.uniform(num_stages).stages:
        clean, noise = (tensor.double() for tensor in _clean_and_noise())
        times = torch.full((2,), u)
        point = path(clean, noise, times, stage)
        velocity = velocity_from_clean(point.x, clean, times, stage)
        torch.testing.assert_close(velocity, point.velocity, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(clean_from_velocity(point.x, velocity, times, stage), clean, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_stages", [1, 3])
def test_velocity_is_finite_on_the_closed_time_range_whatever_the_estimate(num_stages: int) -> None:
    for stage in StageSchedule.uniform(num_stages).stages:
        clean, noise = _clean_and_noise()
        for u in (0.0, 1e-6, 1.0):
            times = torch.full((2,), u)
            x = path(clean, noise, times, stage).x.requires_grad_()
            velocity = velocity_from_clean(x, torch.zeros_like(clean), times, stage, floor=0.05)
            velocity.square().mean().backward()
            assert velocity.isfinite().all()
            assert x.grad is not None
            assert x.grad.isfinite().all()


@pytest.mark.parametrize("gamma", [0.0, -0.1, 0.34, math.nan])
def test_gamma_outside_its_range_is_refused(gamma: float) -> None:
    with pytest.raises(ValueError, match=r"gamma .* is outside \(0, 1/3\]"):
        StageSchedule.uniform(2, gamma)


def test_a_ladder_has_at_least_one_stage() -> None:
    with pytest.raises(ValueError, match="Number of stages 0 is less than 1"):
        StageSchedule.uniform(0)


def test_a_stage_is_immutable() -> None:
    stage = StageSchedule.uniform(1).stages[0]
    with pytest.raises(AttributeError):
        stage.t_end = 0.5  # type: ignore[misc]
    assert isinstance(stage, Stage)


def _clean_and_noise() -> tuple[torch.Tensor, torch.Tensor]:
    g = generator(3)
    return torch.randn(2, 3, 8, 8, generator=g), torch.randn(2, 3, 8, 8, generator=g)


def _block_covariance(noise: torch.Tensor) -> torch.Tensor:
    blocks = torch.nn.functional.pixel_unshuffle(noise, 2)  # (1, 4 C, h, w), the 4 of a block beside each other
    rows = blocks.unflatten(1, (-1, 4)).transpose(1, 2).reshape(4, -1)
    return rows @ rows.T / rows.shape[1]


@pytest.mark.parametrize("ends", [[0.0], [0.1, 0.06, 0.0], [0.9, 0.5, 0.49, 0.0]])
def test_a_ladder_may_end_its_stages_anywhere_and_starts_each_where_the_jump_leads(ends: list[float]) -> None:
    schedule = StageSchedule.from_ends(ends, gamma=0.2)
    stages = schedule.stages
    assert [stage.t_end for stage in stages] == ends
    assert [stage.t_start for stage in stages] == [1.0, *(renoised_level(end, 0.2) for end in ends[:-1])]
    assert [stage.downscale for stage in stages] == [2 ** (len(ends) - 1 - i) for i in range(len(ends))]
    for before, after in pairwise(stages):
        assert before.coordinate_end == after.coordinate_start


@pytest.mark.parametrize("num_stages", [1, 2, 3, 4])
def test_uniform_ends_make_the_uniform_ladder(num_stages: int) -> None:
    ends = [1 - (i + 1) / num_stages for i in range(num_stages - 1)] + [0.0]
    assert StageSchedule.from_ends(ends) == StageSchedule.uniform(num_stages)


@pytest.mark.parametrize(
    "ends", [[], [0.1], [1.0, 0.0], [0.1, 0.2, 0.0], [0.1, 0.1, 0.0], [math.nan, 0.0], [0.1, -0.1]]
)
def test_ends_that_do_not_fall_to_zero_are_an_error(ends: list[float]) -> None:
    with pytest.raises(ValueError, match=r"^Stage ends \[.*\] do not fall from below 1 to 0\. Pass one noise level"):
        StageSchedule.from_ends(ends)


@pytest.mark.parametrize("residuals", [[0.1], [0.1, 0.0, 0.1], [0.1, math.inf, 0.1]])
def test_residuals_that_do_not_fit_are_an_error(residuals: list[float]) -> None:
    with pytest.raises(ValueError, match=r"^Residuals \[.*\] do not fit 3 stages\. Pass a positive number for each"):
        StageSchedule.from_ends([0.2, 0.1, 0.0], residuals=residuals)


def test_proposed_ends_lie_between_what_two_scales_leave_open() -> None:
    assert proposed_ends([0.1]) == [0.0]
    assert proposed_ends([0.2, 0.1, 0.02]) == pytest.approx([0.03**0.5, 0.003**0.5, 0.0])


def test_proposed_ends_fall_where_residuals_grow() -> None:
    first, second, last = proposed_ends([0.05, 0.1, 0.2])
    assert first / second == pytest.approx(1.5)
    assert last == 0
    assert first * second == pytest.approx((0.05 * 1.5 * 0.1 * 0.1 * 1.5 * 0.2) ** 0.5)  # nearest, in log
    StageSchedule.from_ends(proposed_ends([0.5, 2.0, 8.0]))  # and never above 1


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("share", [0.02, 0.3, 1.0])
def test_the_linear_estimate_has_the_error_that_it_states(index: int, share: float) -> None:
    stage = StageSchedule.from_ends([0.1, 0.06, 0.0], residuals=[0.05, 0.09, 0.12]).stages[index]
    assert stage.residual is not None
    draw, u = generator(0), torch.tensor([share])
    error = stage.residual * torch.randn(1, 3, 256, 256, generator=draw)
    if index:
        error = error - up(down(error))  # what the stage before found is known
    clean = torch.randn(1, 3, 256, 256, generator=draw)
    point = path(clean, torch.randn(clean.shape, generator=draw), u, stage)
    found = linear_estimate(point.x, clean - error, u, stage)
    rest = (found.clean - clean).square().mean().sqrt()
    assert rest.item() == pytest.approx(found.deviation.item(), rel=0.01 if index == 0 else 0.15)
    assert rest <= error.square().mean().sqrt() * 1.001  # never worse than the guess
    if index == 0:
        assert found.innovation.std().item() == pytest.approx(1, rel=0.01)


def test_the_linear_estimate_of_a_clean_image_is_the_image() -> None:
    stage = StageSchedule.from_ends([0.1, 0.0], residuals=[0.05, 0.09]).stages[-1]
    clean, guess = (torch.randn(1, 3, 8, 8, generator=generator(seed)) for seed in (0, 1))
    found = linear_estimate(clean, guess, torch.zeros(1), stage)
    torch.testing.assert_close(found.clean, clean)
    assert found.deviation.item() == 0
