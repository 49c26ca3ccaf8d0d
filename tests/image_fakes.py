"""Small images, and a source in memory, for tests that read data."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image


def encoded(seed: int, *, width: int = 24, height: int = 20) -> bytes:
    """The bytes of a PNG whose red channel is `seed` everywhere; the others are noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels[..., 0] = seed
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


class ListedImages:
    """A source in memory."""

    def __init__(self, images: Sequence[bytes], name: str = "list") -> None:
        self.name = name
        self.images = list(images)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> bytes:
        return self.images[index]

    def key(self, index: int) -> str:
        return f"{index}.png"
