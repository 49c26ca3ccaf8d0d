"""A decode that is watched is the decode, stage by stage."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from stepladder.bottlenecks import FSQConfig
from stepladder.errors import ImageError
from stepladder.images import to_pil, to_tensor
from stepladder.measure.metrics import colour_shift, psnr, quantise, ssim
from stepladder.measure.progressive import compare, watch
from stepladder.presets import tiny, tiny_tokens
from stepladder.tokenizer import Tokenizer


def tokenizer_of(config):
    tokenizer = Tokenizer(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in tokenizer.parameters():  # fresh last layers are zero, and would ignore the noise
            parameter.normal_(0, 0.1, generator=generator)
    return tokenizer


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_the_stages_are_those_of_a_progressive_decode():
    tokenizer, image = tokenizer_of(tiny()), noise(37, 21)
    wanted = tokenizer.decode_progressively(tokenizer.encode(to_tensor(image)[None]), seeds=[5], steps=2)
    decode = watch(tokenizer, image, seed=5, steps=2)
    stages = list(decode.stages)
    assert [stage.image for stage in stages] == [to_pil(end[0]) for end in wanted]
    assert [stage.downscale for stage in stages] == [4, 2, 1]
    assert decode.num_stages == 3
    assert stages[-1].image.size == image.size
    assert decode.latent_shape == (16, 3, 5)
    assert decode.latent_bits == 16 * 3 * 5 * 32
    assert min([decode.encoding_seconds, *(stage.seconds for stage in stages)]) > 0


def test_a_quantised_latent_takes_the_bits_of_its_codes():
    tokenizer = tokenizer_of(replace(tiny(), latent_channels=3, bottleneck=FSQConfig(levels=[8, 8, 4])))
    assert watch(tokenizer, noise(16, 8)).latent_bits == pytest.approx(2 * 8)


def test_an_image_of_another_size_than_a_model_takes_is_refused_before_anything_is_decoded():
    with pytest.raises(ImageError, match="Image size 8 x 8 does not fit"):
        watch(tokenizer_of(tiny_tokens()), noise(8, 8))


def test_the_fidelity_is_that_of_the_metrics():
    image, original = noise(24, 16), noise(24, 16, seed=1)
    pair = [quantise(to_tensor(each)[None]) for each in (image, original)]
    found = compare(image, original)
    assert found.psnr_db == pytest.approx(psnr(*pair).item())
    assert found.ssim == pytest.approx(ssim(*pair).item())
    assert found.colour_shift == pytest.approx(colour_shift(*pair).item())


def test_an_equal_or_small_image_has_no_number_where_there_is_none():
    assert compare(noise(16, 16), noise(16, 16)).psnr_db is None
    assert compare(noise(10, 16), noise(10, 16, seed=1)).ssim is None
