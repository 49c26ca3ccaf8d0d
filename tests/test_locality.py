"""Convolutional networks: what a pixel depends on, and what it costs."""

import pytest
import torch

from stepladder import Tokenizer, presets
from stepladder.measure.profiling import count_flops
from stepladder.sampling.denoiser import Denoised
from stepladder.sampling.randomness import generator
from stepladder.tokenizer_config import TokenizerConfig
from tokenizer_fakes import built, grid, pictures

LADDERS = [1, 2, 3]


def test_the_encoder_sees_no_further_than_its_convolutions():
    tokenizer = built(grid())
    images = pictures(128, 128, count=1)
    changed_far_away = images.clone()
    changed_far_away[..., 112:] = 1 - changed_far_away[..., 112:]
    near, far = (tokenizer.encode(i).latent for i in (images, changed_far_away))
    assert torch.equal(near[..., :6], far[..., :6])
    assert not torch.equal(near[..., 14:], far[..., 14:])


@pytest.mark.parametrize("num_stages", LADDERS)
def test_the_decoder_sees_no_further_than_its_convolutions(num_stages):
    # A statistic over the image, or attention, would carry a change everywhere.
    tokenizer = built(grid(num_stages))
    latent = torch.randn(1, 16, 8, 96, generator=generator(2))
    changed_far_away = latent.clone()
    changed_far_away[..., 84:] += 1
    near, far = (tokenizer.decode(z, seeds=[3], steps=1) for z in (latent, changed_far_away))
    torch.testing.assert_close(near[..., :128], far[..., :128], atol=1e-5, rtol=0)
    assert not torch.allclose(near[..., 700:], far[..., 700:], atol=1e-2)


def test_a_crop_of_an_image_has_the_initial_estimate_and_latent_of_the_whole_inside():
    tokenizer = built(grid())
    images = pictures(192, 192, count=1)
    whole, crop = tokenizer.encode(images), tokenizer.encode(images[..., 32:, 32:])
    torch.testing.assert_close(crop.latent[..., 8:, 8:], whole.latent[..., 12:, 12:], atol=1e-4, rtol=0)
    far, near = (tokenizer.decoder.network.context(z.latent).initial for z in (whole, crop))
    torch.testing.assert_close(near[..., 112:, 112:], far[..., 144:, 144:], atol=1e-4, rtol=0)


def test_a_crop_of_a_noisy_image_is_denoised_as_the_whole_inside():
    tokenizer = built(grid())
    stage, u = tokenizer.schedule.stages[-1], torch.tensor([0.5])
    latent, x = torch.randn(1, 16, 20, 20, generator=generator(2)), pictures(160, 160, count=1)
    network = tokenizer.decoder.network
    before = torch.zeros(1, 3, 80, 80)
    whole = network.bind(latent)(x, u, stage, Denoised(before)).clean
    crop = network.bind(latent[..., 4:, 4:])(x[..., 32:, 32:], u, stage, Denoised(before[..., 16:, 16:])).clean
    torch.testing.assert_close(crop[..., 56:, 56:], whole[..., 88:, 88:], atol=1e-4, rtol=0)


def flops_of_one_evaluation(config: TokenizerConfig, side: int) -> int:
    """At full resolution, with the context."""
    with torch.device("meta"):
        tokenizer = Tokenizer(config).eval()
        decoder = tokenizer.decoder
        x, latent = torch.empty(1, 3, side, side), torch.empty(1, config.latent_channels, side // 8, side // 8)
        return count_flops(
            lambda: decoder.network(
                x, torch.empty(1), decoder.schedule.stages[-1], decoder.network.context(latent), None
            )
        )


def test_the_cost_is_linear_in_pixels():
    small, large = (flops_of_one_evaluation(presets.photo(), side) for side in (128, 256))
    assert large == pytest.approx(4 * small, rel=1e-3)
