"""Times and weights of the flow loss."""

import math

import pytest
import torch

from stepladder.losses import LocalTimes, sigmoid_weight
from stepladder.sampling.randomness import generator, uniform

LOGIT_NORMAL = LocalTimes(distribution="logit-normal", location=-0.5, scale=0.8)


def logit(u: torch.Tensor) -> torch.Tensor:
    u = u.double()
    return torch.log(u / (1 - u))


def test_times_are_uniform_where_nothing_else_is_said():
    assert torch.equal(LocalTimes().draw(64, generator(0)), 1 - uniform(64, generator(0)))


@pytest.mark.parametrize(
    "times", [LocalTimes(), LocalTimes(shift=0.5), LOGIT_NORMAL, LocalTimes(distribution="logit-normal")]
)
def test_times_lie_above_0_and_up_to_1_in_float32(times):
    for seed in range(20):
        u = times.draw(16, generator(seed))
        assert u.dtype == torch.float32
        assert 0 < u.min() <= u.max() <= 1


def test_the_log_of_the_ratio_of_logit_normal_times_is_normal():
    found = logit(LOGIT_NORMAL.draw(4096, generator(0)))
    found = found[found.isfinite()]
    assert found.mean().item() == pytest.approx(-0.5, abs=0.01)
    assert found.std().item() == pytest.approx(0.8, abs=0.01)
    for share, deviations in [(0.1587, -1.0), (0.5, 0.0), (0.8413, 1.0)]:
        assert found.quantile(share).item() == pytest.approx(-0.5 + 0.8 * deviations, abs=0.02)


def test_logit_normal_times_are_stratified():
    u = LOGIT_NORMAL.draw(8, generator(0))
    shares = torch.special.ndtr((logit(u) + 0.5) / 0.8)
    assert sorted((shares * 8 - 1e-4).ceil().tolist()) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_shift_of_logit_normal_times_moves_their_location_by_its_logarithm():
    shifted = LocalTimes(distribution="logit-normal", shift=0.4).draw(32, generator(0))
    moved = LocalTimes(distribution="logit-normal", location=math.log(0.4)).draw(32, generator(0))
    torch.testing.assert_close(shifted, moved)


@pytest.mark.parametrize("bias", [-3.0, 0.0, 2.0])
def test_the_sigmoid_weight_is_that_of_the_log_snr(bias):
    level = torch.linspace(0.01, 0.99, 99, dtype=torch.float64, requires_grad=True)
    log_snr = 2 * torch.log((1 - level) / level)
    (slope,) = torch.autograd.grad(log_snr.sum(), level)
    wanted = -0.5 * slope * math.exp(bias) * torch.sigmoid(log_snr - bias)
    torch.testing.assert_close(sigmoid_weight(level.detach(), bias=bias), wanted.detach())


def test_the_sigmoid_weight_falls_from_the_clamped_end_to_0_at_pure_noise():
    weights = sigmoid_weight(torch.tensor([0.05, 0.1, 0.3, 0.6, 0.9, 1.0]), bias=-3.0)
    assert weights.dtype == torch.float32
    assert weights.isfinite().all()
    assert (weights.diff() < 0).all()
    assert weights[-1] == 0
