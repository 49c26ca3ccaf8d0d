"""Blocks that start as the identity and know nothing of the image around a pixel."""

import pytest
import torch
from torch import nn

from stepladder.nn.blocks import ChannelNorm, Modulation, ResidualBlock, channels_last, zero_init


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_norm_gives_every_pixel_unit_mean_square_times_its_gain():
    norm = ChannelNorm(8)
    x = draw(2, 8, 3, 5) * draw(2, 1, 3, 5, seed=1).exp()
    torch.testing.assert_close(norm(x).square().mean(dim=1), torch.ones(2, 3, 5), atol=1e-3, rtol=0)
    with torch.no_grad():
        norm.gain.copy_(torch.arange(8.0))
    reference = nn.functional.rms_norm(x.permute(0, 2, 3, 1), (8,), norm.gain, eps=1e-6).permute(0, 3, 1, 2)
    torch.testing.assert_close(norm(x), reference)


def test_the_norm_of_a_pixel_does_not_depend_on_other_pixels():
    norm, x = ChannelNorm(4), draw(1, 4, 6, 6)
    other = x.clone()
    other[..., 3:] *= 100
    assert torch.equal(norm(x)[..., :3], norm(other)[..., :3])


def test_the_norm_keeps_the_dtype_and_is_finite_at_zero():
    for dtype in (torch.float32, torch.bfloat16):
        found = ChannelNorm(4)(torch.zeros(1, 4, 2, 2, dtype=dtype))
        assert found.dtype == dtype
        assert not found.any()


def test_the_norm_is_computed_in_float32():
    x = draw(1, 512, 1, 1).bfloat16()
    wanted = nn.functional.rms_norm(x.float().flatten(), (512,), eps=1e-6)
    torch.testing.assert_close(ChannelNorm(512)(x).float().flatten(), wanted, atol=2e-2, rtol=1e-2)


def test_modulation_starts_as_the_identity_and_then_scales_and_shifts():
    modulation, x, embedding = Modulation(6, 4), draw(2, 4, 3, 3), draw(2, 6)
    assert torch.equal(modulation(x, embedding), x)
    with torch.no_grad():
        modulation.project.bias.copy_(torch.tensor([0.5] * 4 + [-0.25] * 4).atanh())
    torch.testing.assert_close(modulation(x, embedding), 1.5 * x - 0.25)


def test_a_modulation_moves_features_by_no_more_than_their_scale():
    modulation, x, embedding = Modulation(6, 4), draw(2, 4, 3, 3), draw(2, 6)
    assert torch.equal(modulation(x, embedding), x)
    with torch.no_grad():
        modulation.project.bias.fill_(1e6)
    torch.testing.assert_close(modulation(x, embedding), 2 * x + 1)


@pytest.mark.parametrize("embedding", [None, 6])
def test_a_residual_block_starts_as_the_identity(embedding):
    block, x = ResidualBlock(4, embedding=embedding), draw(2, 4, 5, 7)
    assert torch.equal(block(x, draw(2, 6) if embedding else None), x)
    nn.init.normal_(block.outer.weight, generator=torch.Generator().manual_seed(0))
    assert block(x, draw(2, 6) if embedding else None).shape == x.shape
    assert not torch.equal(block(x, draw(2, 6) if embedding else None), x)


def test_a_block_that_needs_an_embedding_says_so():
    with pytest.raises(AssertionError):
        ResidualBlock(4, embedding=6)(draw(2, 4, 5, 7))


@pytest.mark.parametrize("layer", [nn.Linear(3, 4), nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3, bias=False)])
def test_a_layer_at_zero_is_silent(layer):
    assert zero_init(layer) is layer
    assert not any(parameter.any() for parameter in layer.parameters())


def test_channels_last_changes_the_layout_and_no_value():
    layer = nn.Conv2d(3, 4, 3)
    before = layer.weight.detach().clone()
    assert channels_last(layer) is layer
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(layer.weight, before)
