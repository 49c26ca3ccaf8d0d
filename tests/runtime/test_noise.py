"""Noise in numpy is that of torch."""

import numpy as np
import pytest
import torch

from stepladder.runtime.noise import Noise, ZeroNoise
from stepladder.sampling.randomness import generators, normal

SEEDS = [0, 1, 123456789, 2**32 + 5, 2**63 - 1]


def test_a_seed_means_the_same_noise_as_with_torch_draw_after_draw():
    ours, theirs = Noise(SEEDS), generators(SEEDS)
    for shape in ((5, 3, 8, 8), (5, 3, 5, 7), (5, 3, 16, 24), (5, 1, 4, 4)):  # 105 is no multiple of 16
        np.testing.assert_allclose(ours.normal(shape), normal(shape, theirs).numpy(), atol=2e-6)


def test_an_image_gets_the_same_noise_alone_and_in_a_batch():
    together, alone = Noise([4, 9]), Noise([9])
    for side in (8, 16):
        assert (together.normal((2, 3, side, side))[1] == alone.normal((1, 3, side, side))[0]).all()


def test_noise_is_white_and_of_unit_variance():
    noise = Noise([7]).normal((1, 3, 128, 128))
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02
    assert abs((noise[..., 1:] * noise[..., :-1]).mean()) < 0.02


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_outside_the_range_is_refused(seed):
    with pytest.raises(ValueError, match=rf"Seed {seed} is outside \[0, 2\^63\)\. Pass a whole number in that range\."):
        Noise([seed])
    with pytest.raises(ValueError, match="outside"):
        torch.Generator().manual_seed(0)
        generators([seed])


def test_zero_noise_is_zero():
    assert not ZeroNoise().normal((2, 3, 8, 8)).any()
