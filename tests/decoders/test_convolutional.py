"""The convolutional decoder: where it makes the initial estimate."""

from dataclasses import replace

import pytest
import torch

from stepladder.decoders import build_network
from stepladder.errors import ConfigError
from stepladder.layouts import GridLayout
from stepladder.presets import tiny
from stepladder.sampling.randomness import generator

CHANNELS = 6
PLAIN = tiny().decoder
FINE = replace(PLAIN, estimate_width=12, estimate_depth=2)


def initial(config, stride, latent):
    torch.manual_seed(0)
    network = build_network(config, GridLayout(CHANNELS, stride))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.1, generator=generator(1))
        return network.context(latent)


@pytest.mark.parametrize("stride", [8, 12, 16, 32])
def test_the_estimate_is_made_on_the_grid_of_a_quarter_of_the_image(stride):
    latent = torch.randn(2, CHANNELS, 3, 2, generator=generator(0))
    context = initial(FINE, stride, latent)
    height, width = 3 * stride, 2 * stride
    assert context.initial.shape == (2, 3, height, width)
    assert context.features.shape == (2, 12, height // 4, width // 4)
    assert initial(PLAIN, stride, latent).features.shape == (2, PLAIN.context_width, 3, 2)


def test_a_fresh_network_estimates_by_its_linear_layer_alone():
    network = build_network(FINE, GridLayout(CHANNELS, 8))
    matrix, mean = torch.randn(CHANNELS, 192, generator=generator(2)), torch.randn(192, generator=generator(3))
    network.start_from_synthesis(matrix, mean)
    latent = torch.randn(1, CHANNELS, 2, 2, generator=generator(0))
    patches = torch.einsum("bchw,cn->bnhw", latent, matrix) + mean[:, None, None]
    expected = torch.nn.functional.pixel_shuffle(patches, 8)
    torch.testing.assert_close(network.context(latent).initial, expected)


@pytest.mark.parametrize("stride", [2, 4, 6])
def test_a_latent_whose_grid_is_as_fine_has_no_finer_one(stride):
    with pytest.raises(ConfigError, match=f"does not fit latents of side ratio {stride}, .* Set estimate_depth to 0"):
        build_network(FINE, GridLayout(CHANNELS, stride))


def test_other_models_have_the_weights_that_they_had():
    torch.manual_seed(3)
    before = build_network(PLAIN, GridLayout(CHANNELS, 8)).state_dict()
    torch.manual_seed(3)
    after = build_network(replace(PLAIN, estimate_width=12), GridLayout(CHANNELS, 8)).state_dict()
    assert before.keys() == after.keys() and not [name for name in before if "estimate" in name]
    assert all(torch.equal(before[name], after[name]) for name in before)
