"""The embedded model decodes to stored values: a change of code must not change released models."""

import pytest
import torch
from safetensors.torch import load_file

from golden.make import CASES, FILE, STEPS, crop
from stepladder import Tokenizer
from stepladder.images import to_uint8


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_pretrained("photo")


@pytest.mark.parametrize("name", CASES)
def test_latents_are_the_stored_ones(tokenizer: Tokenizer, name: str) -> None:
    torch.testing.assert_close(
        tokenizer.encode(crop(name)).latent, load_file(FILE)[f"{name}.latent"], atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("steps", STEPS)
def test_images_are_the_stored_ones(tokenizer: Tokenizer, name: str, steps: int) -> None:
    stored = load_file(FILE)
    decoded = to_uint8(
        tokenizer.decode(stored[f"{name}.latent"], seeds=[7], steps=steps, size=(64, crop(name).shape[3]))
    )
    difference = (decoded.int() - stored[f"{name}.{steps}"].int()).abs()
    assert difference.max() <= 2  # other processors and versions of torch round differently
    assert difference.float().mean() < 0.05
