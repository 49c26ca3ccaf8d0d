"""The straight path: any two of (x_t, x0, noise, v) give the others."""

import pytest
import torch

from stepladder.sampling.flow import clean_from_velocity, interpolate, noise_from_velocity, velocity


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(5, 3, 4, 6, generator=g), torch.randn(5, 3, 4, 6, generator=g)


def test_time_zero_is_the_image_and_time_one_is_noise(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    x0, noise = pair
    assert torch.equal(interpolate(x0, noise, torch.zeros(5)), x0)
    assert torch.equal(interpolate(x0, noise, torch.ones(5)), noise)


def test_image_to_velocity_to_image_is_the_identity(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    x0, noise = pair
    t = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])
    x_t, v = interpolate(x0, noise, t), velocity(x0, noise)
    torch.testing.assert_close(clean_from_velocity(x_t, v, t), x0)
    torch.testing.assert_close(noise_from_velocity(x_t, v, t), noise)


def test_velocity_is_the_derivative_of_the_path(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    x0, noise = (tensor.double() for tensor in pair)
    t = torch.full((5,), 0.25)
    step = 2.0**-10
    slope = (interpolate(x0, noise, t + step) - interpolate(x0, noise, t - step)) / (2 * step)
    torch.testing.assert_close(slope, velocity(x0, noise))


@pytest.mark.parametrize(
    ("t", "message"),
    [
        (torch.zeros(5, dtype=torch.bfloat16), "Times have dtype torch.bfloat16. Accepted: torch.float32"),
        pytest.param(torch.zeros(4), r"Times have shape \(4,\). Accepted: \(5,\)", marks=pytest.mark.untyped),
    ],
)
def test_times_are_float32_and_one_for_each_image(
    pair: tuple[torch.Tensor, torch.Tensor], t: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        interpolate(*pair, t)
