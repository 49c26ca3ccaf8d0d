"""Random resized crops and flips.

A crop of `size` pixels is a square window of the photograph, resampled to `size`. The side of the window is

    side = size * s           relative to the crop, the default
    side = short side * s     relative to the short side of the photograph

with log s uniform in [log min_scale, log max_scale], no larger than the short side. Relative to the crop, a scale of 1
copies pixels as they are and 2 shows twice as much of the scene at half the resolution: a decoder sees texture as it
is. Relative to the short side, 0.8 to 1 shows most of the scene, whatever its resolution, as arXiv 2603.19570 does. An
image smaller than the crop is enlarged. Log-uniform scales show a network each octave of detail equally often.
Resampling is Lanczos, antialiased.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from stepladder.bounds import MAX_SIDE
from stepladder.configs import quoted
from stepladder.errors import ConfigError

__all__ = ["CropConfig", "random_crop"]

_MOST_CROPS = 65_536


@dataclass(frozen=True, kw_only=True, slots=True)
class CropConfig:
    """How training crops are cut from photographs."""

    size: int = 128
    """Side of a crop in pixels."""
    relative_to: Literal["crop", "short side"] = "crop"
    """What scales are relative to: the side of the crop in pixels, or the short side of the photograph."""
    min_scale: float = 1.0
    """Smallest side of the source window over the side that scales are relative to; relative to the crop, below 1
    enlarges."""
    max_scale: float = 2.5
    """Largest side of the source window over the side that scales are relative to; at most 1 of the short side."""
    flip: bool = True
    """Whether half of the crops are mirrored left to right."""
    crops_per_image: int = 1
    """Crops cut from one decoded photograph; above 1 saves decoding, and makes a batch less varied."""

    def __post_init__(self) -> None:
        if not 1 <= self.size <= MAX_SIDE:
            raise ConfigError(
                f"Crop size is {quoted(self.size)}. It must be 1 to {MAX_SIDE:,} pixels. Set crop.size, for example "
                "128."
            )
        scales = (self.min_scale, self.max_scale)
        if not (all(math.isfinite(s) for s in scales) and 0 < self.min_scale <= self.max_scale):
            raise ConfigError(
                f"Crop scales are {self.min_scale} to {self.max_scale}. They must satisfy 0 < min_scale <= max_scale. "
                "Set crop.min_scale and crop.max_scale, for example 1.0 and 2.5."
            )
        if self.relative_to == "short side" and self.max_scale > 1:
            raise ConfigError(
                f"Crop scales are {self.min_scale} to {self.max_scale} of the short side. They must be at most 1. Set "
                "crop.min_scale and crop.max_scale, for example 0.8 and 1.0."
            )
        if not 1 <= self.crops_per_image <= _MOST_CROPS:
            raise ConfigError(
                f"Crops per image are {quoted(self.crops_per_image)}. They must be 1 to {_MOST_CROPS:,}. Set "
                "crop.crops_per_image."
            )


def random_crop(image: Image.Image, config: CropConfig, generator: np.random.Generator) -> Image.Image:
    """Cuts one random square from an image.

    Args:
        image: A photograph of any size, 8-bit RGB.
        config: Size, scales and flips.
        generator: Drawn from four times, whatever the image is.

    Returns:
        An image of `config.size` x `config.size`.
    """
    u_scale, u_left, u_top, u_flip = generator.random(4)
    low, high = math.log(config.min_scale), math.log(config.max_scale)
    unit = config.size if config.relative_to == "crop" else min(image.size)
    wanted = round(unit * math.exp(low + u_scale * (high - low)))
    side = max(1, min(wanted, *image.size))
    # Whole pixels: at scale 1 a crop is an exact copy.
    left = int(u_left * (image.width - side + 1))
    top = int(u_top * (image.height - side + 1))
    box = (left, top, left + side, top + side)
    if side == config.size:
        crop = image.crop(box)
    else:
        crop = image.resize((config.size, config.size), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if config.flip and u_flip < 0.5 else crop
