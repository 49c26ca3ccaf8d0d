import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from stepladder.bottlenecks import FSQConfig, VQConfig
from stepladder.errors import ImageError
from stepladder.images import to_pil, to_tensor
from stepladder.measure.reconstruction import reconstruct
from stepladder.presets import tiny, tiny_tokens
from stepladder.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = Tokenizer(tiny()).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in tokenizer.parameters():  # fresh last layers are zero, and would ignore the noise
            parameter.normal_(0, 0.1, generator=generator)
    return tokenizer


@pytest.mark.parametrize("size", [(1, 1), (17, 9), (37, 401)])
def test_any_size_comes_back_in_its_size(tokenizer, size):
    result = reconstruct(tokenizer, Image.new("RGB", size, "teal"), steps=1)
    assert result.image.size == size
    assert result.latent_shape == (16, -(-size[1] // 8), -(-size[0] // 8))


def test_it_is_what_encode_and_decode_give(tokenizer):
    image = Image.new("RGB", (17, 9), "teal")
    decoded = tokenizer.decode(tokenizer.encode(to_tensor(image)[None]), seeds=[5], steps=2)
    same = to_tensor(reconstruct(tokenizer, image, seed=5, steps=2).image)
    assert (same - decoded[0]).abs().max() <= 1 / 255 + 1e-6
    other = to_tensor(reconstruct(tokenizer, image, seed=6, steps=2).image)
    assert not torch.equal(same, other)


def test_its_stages_are_those_of_the_same_decode(tokenizer):
    image = Image.new("RGB", (17, 9), "teal")
    result = reconstruct(tokenizer, image, seed=5, steps=2)
    code = tokenizer.encode(to_tensor(image)[None])
    *stages, last = tokenizer.decode_progressively(code, seeds=[5], steps=2)
    assert [stage.size for stage in result.stages] == [(5, 3), (9, 5)]
    assert all(np.array_equal(stage, to_pil(one[0])) for stage, one in zip(result.stages, stages, strict=True))
    assert np.array_equal(result.image, to_pil(last[0]))


def test_psnr_is_that_of_the_pixels_that_a_file_would_hold(tokenizer):
    image = Image.new("RGB", (17, 9), "teal")
    result = reconstruct(tokenizer, image)
    error = np.asarray(image, dtype=float) - np.asarray(result.image, dtype=float)
    assert result.psnr_db == pytest.approx(-10 * np.log10(np.mean((error / 255) ** 2)), abs=1e-3)


def test_the_cost_of_the_latent_is_counted_for_each_pixel(tokenizer):
    result = reconstruct(tokenizer, Image.new("RGB", (17, 9)), steps=1)
    assert result.latent_bits == 16 * 2 * 3 * 32
    assert result.bits_per_pixel == pytest.approx(16 * 2 * 3 * 32 / (17 * 9))
    assert result.seconds > 0


def test_latent_tokens_cost_32_bits_for_each_value():
    result = reconstruct(Tokenizer(tiny_tokens()).eval(), Image.new("RGB", (32, 32)), steps=1)
    assert result.latent_shape == (6, 4)
    assert result.latent_bits == 6 * 4 * 32
    assert result.bits_per_pixel == pytest.approx(6 * 4 * 32 / 32**2)


@pytest.mark.parametrize(
    ("bottleneck", "codes"), [(FSQConfig(levels=[8, 5, 5, 5]), 1000), (VQConfig(codebook_size=24), 24)]
)
def test_codes_cost_the_logarithm_of_their_number(bottleneck, codes):
    tokens = Tokenizer(replace(tiny_tokens(), bottleneck=bottleneck)).eval()
    result = reconstruct(tokens, Image.new("RGB", (32, 32)), steps=1)
    assert result.latent_bits == pytest.approx(6 * math.log2(codes))
    assert result.bits_per_pixel == pytest.approx(6 * math.log2(codes) / 32**2)
    grid = Tokenizer(replace(tiny(), latent_channels=4, bottleneck=bottleneck)).eval()
    result = reconstruct(grid, Image.new("RGB", (17, 9)), steps=1)
    assert result.bits_per_pixel == pytest.approx(2 * 3 * math.log2(codes) / (17 * 9))


def test_an_image_of_another_size_than_the_tokens_describe_is_refused():
    with pytest.raises(ImageError, match=r"^Image size 17 x 9 does not fit a model with 6 latent tokens for 32 x 32\."):
        reconstruct(Tokenizer(tiny_tokens()).eval(), Image.new("RGB", (17, 9)))


def test_without_an_error_psnr_is_none(tokenizer, monkeypatch):
    monkeypatch.setattr("stepladder.measure.reconstruction.psnr", lambda *_: torch.tensor([torch.inf]))
    assert reconstruct(tokenizer, Image.new("RGB", (8, 8)), steps=1).psnr_db is None
