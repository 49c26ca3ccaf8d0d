"""Models that are offered, and a page that is served."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from stepladder.demo.trial import Offered
from stepladder.presets import tiny, tiny_tokens
from stepladder.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def offered() -> Callable[..., Offered]:
    """Makes a model with drawn weights; `tokens` for one that takes images of one size."""

    def make(name: str = "tiny", *, tokens: bool = False) -> Offered:
        tokenizer = Tokenizer(tiny_tokens() if tokens else tiny()).eval()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in tokenizer.parameters():
                parameter.normal_(0, 0.1, generator=generator)
        return Offered(name=name, tokenizer=tokenizer, steps=1)

    return make


@pytest.fixture(scope="session")
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (18, 40, 3), dtype=np.uint8))
