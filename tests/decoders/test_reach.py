"""How far the convolutional network sees, and the margin that follows."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from stepladder import presets
from stepladder.decoders import ConvDecoder
from stepladder.sampling.randomness import generator
from stepladder.sampling.stages import StageSchedule


def a_latent(height: int, width: int) -> Tensor:
    return torch.randn(1, 16, height, width, generator=generator(1))


@pytest.mark.parametrize(("depth", "coarse_depth", "reach"), [(0, 0, 16), (1, 0, 32), (1, 1, 48), (2, 3, 96)])
def test_the_reach_is_how_far_the_network_sees_and_no_more(depth, coarse_depth, reach):
    config = replace(presets.tiny().decoder, depth=depth, coarse_depth=coarse_depth)
    network = ConvDecoder(config, 16, 8).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(0.01)
    assert network.reach == reach
    context = network.context(a_latent(36, 1))
    for seen, spoilt in [(reach, False), (reach - 8, True)]:
        # Not-a-number goes wherever a convolution looks. The tile is the 8 rows from pixel 136 on.
        x = torch.full((1, 3, 288, 8), torch.nan)
        x[:, :, 136 - seen : 144 + seen] = 0
        found = network(x, torch.tensor([0.5]), StageSchedule.uniform(1).stages[0], context, None).clean[:, :, 136:144]
        assert bool(found.isnan().any()) == spoilt


@pytest.mark.parametrize(
    ("stride", "depth", "coarse_depth", "margin"), [(8, 2, 3, 48), (8, 1, 1, 24), (16, 1, 1, 32), (16, 0, 0, 16)]
)
def test_the_margin_is_half_the_reach_in_whole_cells_of_the_latent(stride, depth, coarse_depth, margin):
    config = replace(presets.tiny().decoder, depth=depth, coarse_depth=coarse_depth)
    network = ConvDecoder(config, 16, stride)
    assert network.tile_margin == margin
    assert network.reach / 2 <= margin < network.reach / 2 + max(8, stride)


@pytest.mark.parametrize(("depth", "estimate_depth"), [(0, 0), (2, 0), (1, 1), (0, 3)])
def test_the_reach_in_the_latent_is_how_far_its_reader_sees_and_no_more(depth, estimate_depth):
    config = replace(presets.tiny().decoder, context_depth=depth, estimate_depth=estimate_depth, estimate_width=8)
    network = ConvDecoder(config, 16, 8).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(0.01)
    reach = network.latent_reach
    for seen, spoilt in [(reach, False), (reach - 1, True)]:
        latent = torch.full((1, 16, 31, 1), torch.nan)
        latent[:, :, 15 - seen : 16 + seen] = 0
        context = network.context(latent)
        assert bool(context.initial[:, :, 120:128].isnan().any()) == spoilt
        finer = context.features.shape[2] // 31
        assert not context.features[:, :, 15 * finer : 16 * finer].isnan().any() or spoilt
