"""Encoding in tiles: the latent of the whole image, without its memory."""

from dataclasses import replace

import pytest
import torch

from stepladder import Tokenizer, presets
from stepladder.encoders import ConvEncoder, ConvEncoderConfig, MMDiTEncoder, features
from stepladder.models import embedded_models
from stepladder.sampling.tiling import in_tiles


def an_encoder(**sizes: int) -> ConvEncoder:
    """With weights that let everything through."""
    encoder = ConvEncoder(ConvEncoderConfig(width=8, **sizes), 6).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.normal_(0, 0.2, generator=generator)
    return encoder.requires_grad_(False)


def a_picture(height: int, width: int) -> torch.Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


SIZES = [
    ({"stride": 4, "depth": 0, "latent_depth": 0}, 8),
    ({"stride": 8, "depth": 1, "latent_depth": 1}, 40),
    ({"stride": 16, "depth": 1, "latent_depth": 1}, 80),
    ({"stride": 8, "depth": 2, "latent_depth": 3}, 80),
]


@pytest.mark.parametrize(("sizes", "reach"), SIZES)
def test_the_reach_is_how_far_the_encoder_sees_and_no_more(sizes, reach):
    encoder = an_encoder(**sizes)
    stride = sizes["stride"]
    assert encoder.reach == reach
    middle = 20 * stride
    for seen, spoilt in ((reach, False), (reach - stride, True)):
        # Not-a-number goes wherever a convolution looks. The cell is that from pixel `middle` on.
        images = torch.full((1, 3, 41 * stride, stride), torch.nan)
        images[:, :, middle - seen : middle + stride + seen] = 0
        assert bool(encoder(images)[:, :, 20].isnan().any()) == spoilt


@pytest.mark.parametrize(("sizes", "reach"), SIZES)
def test_features_in_tiles_are_those_of_the_whole(sizes, reach):
    encoder = an_encoder(**sizes)
    images = a_picture(13 * sizes["stride"], 21 * sizes["stride"])
    whole = encoder(images)
    for side in (2 * sizes["stride"], 8 * sizes["stride"]):
        torch.testing.assert_close(features(encoder, images, tile=side), whole, atol=1e-4, rtol=1e-4)


def test_a_seam_would_show_with_a_margin_too_small():
    encoder = an_encoder(stride=8, depth=1, latent_depth=1)
    images = a_picture(104, 168)
    (found,) = in_tiles(lambda part: [encoder(part)], images, side=32, margin=8)
    assert (found - encoder(images)).abs().max() > 1e-2


def test_every_embedded_model_encodes_in_tiles_as_in_one_piece(monkeypatch):
    for name in embedded_models():
        tokenizer = Tokenizer.from_pretrained(name)
        seen: list[int] = []
        tokenizer.encoder.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(max(inputs[0].shape[2:])))
        images = a_picture(395, 280)
        whole, tiled = (tokenizer.encode(images, tile=side) for side in (0, 64))
        assert (max(seen[:1]), max(seen[1:])) == (400, 64 + 2 * tokenizer.encoder.reach)
        assert tiled.size == whole.size == (395, 280)
        torch.testing.assert_close(tiled.latent, whole.latent, atol=1e-4, rtol=0)


def test_a_model_encodes_in_the_tiles_that_its_configuration_says():
    tokenizer = Tokenizer(replace(presets.tiny(), tile=32)).eval()
    seen: list[tuple[int, ...]] = []
    tokenizer.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[2:])))
    tokenizer.encode(a_picture(32, 32))
    assert seen == [(32, 32)]
    tokenizer.encode(a_picture(32, 64))
    assert len(seen) == 3


def test_an_encoder_that_looks_at_the_whole_image_gets_it():
    tokenizer = Tokenizer(presets.tiny_tokens()).eval()
    assert MMDiTEncoder.reach is None
    side = tokenizer.layout.side_multiple
    assert tokenizer.encode(a_picture(side, side)).latent.ndim == 3
