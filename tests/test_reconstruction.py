import numpy as np
import pytest
import torch
from PIL import Image

from stepladder.errors import MissingDependencyError
from stepladder.images import to_pil, to_tensor
from stepladder.presets import tiny
from stepladder.reconstruction import reconstruct
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


def test_its_rungs_are_those_of_the_same_decode(tokenizer):
    image = Image.new("RGB", (17, 9), "teal")
    result = reconstruct(tokenizer, image, seed=5, steps=2)
    code = tokenizer.encode(to_tensor(image)[None])
    *rungs, last = tokenizer.decode_progressively(code, seeds=[5], steps=2)
    assert [rung.size for rung in result.rungs] == [(5, 3), (9, 5)]
    assert all(np.array_equal(rung, to_pil(one[0])) for rung, one in zip(result.rungs, rungs, strict=True))
    assert np.array_equal(result.image, to_pil(last[0]))


def test_psnr_is_that_of_the_pixels_that_a_file_would_hold(tokenizer):
    image = Image.new("RGB", (17, 9), "teal")
    result = reconstruct(tokenizer, image)
    error = np.asarray(image, dtype=float) - np.asarray(result.image, dtype=float)
    assert result.psnr_db == pytest.approx(-10 * np.log10(np.mean((error / 255) ** 2)), abs=1e-3)


def test_the_cost_of_the_latent_is_counted_for_each_pixel(tokenizer):
    result = reconstruct(tokenizer, Image.new("RGB", (17, 9)), steps=1)
    assert result.latent_bytes == 16 * 2 * 3 * 4
    assert result.bits_per_pixel == pytest.approx(8 * result.latent_bytes / (17 * 9))
    assert result.seconds > 0


def test_without_the_metric_or_an_error_psnr_is_none(tokenizer, monkeypatch):
    def missing(*_):
        raise MissingDependencyError("not installed")

    for metric in (missing, lambda *_: torch.tensor([torch.inf])):
        monkeypatch.setattr("stepladder.reconstruction.psnr", metric)
        assert reconstruct(tokenizer, Image.new("RGB", (8, 8)), steps=1).psnr_db is None
