"""Generators that the caller holds."""

import pytest
import torch

from stepladder.sampling.randomness import generator, generators, normal, uniform


def test_a_seed_gives_the_same_noise_and_another_seed_other_noise():
    draws = [normal((2, 3), generator(seed)) for seed in (5, 5, 6)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_with_one_generator_an_image_noise_does_not_depend_on_the_batch():
    together = normal((3, 2, 4, 4), generators([7, 8, 9]))
    for i, seed in enumerate((7, 8, 9)):
        assert torch.equal(together[i : i + 1], normal((1, 2, 4, 4), generators([seed])))


def test_noise_is_white_and_float32():
    noise = normal((4, 100_000), generators([0, 1, 2, 3]))
    assert noise.dtype == torch.float32
    torch.testing.assert_close(noise @ noise.T / 100_000, torch.eye(4), atol=0.02, rtol=0)


def test_a_generator_goes_on_where_it_was():
    one = generator(3)
    first, second = normal((4,), one), normal((4,), one)
    assert not torch.equal(first, second)
    assert torch.equal(torch.cat([first, second]), torch.randn(8, generator=generator(3)))


def test_drawing_leaves_the_global_state_alone():
    state = torch.random.get_rng_state()
    normal((2, 3), generators([1, 2]))
    uniform(4, generator(0))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seeds_out_of_range_are_refused(seed):
    with pytest.raises(ValueError, match=rf"Seed {seed} is outside \[0, 2\^63\)\. Pass a whole number in that range"):
        generator(seed)


def test_the_largest_seed_is_accepted():
    assert generator(2**63 - 1).initial_seed() == 2**63 - 1


def test_the_number_of_generators_is_that_of_the_images():
    with pytest.raises(ValueError, match=r"2 generators for 3 images. Pass one generator for each image"):
        normal((3, 4), generators([0, 1]))


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_uniform_numbers_are_one_from_each_interval_in_random_order(count):
    numbers = uniform(count, generator(0))
    assert numbers.dtype == torch.float32
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert (numbers * count).floor().sort().values.tolist() == list(range(count))
    if count == 100:
        assert not torch.equal(numbers, numbers.sort().values)
