"""A metric: its name in reports, its heading in tables, and how to compute it.

    ImageMetric      (images, references) -> one value per image; the report has the mean over images
    FrechetMetric    images -> features; the report has the Frechet distance of two sets, with an interval

Both take images in [0, 1] after rounding to 8 bits (`quantise`). `load` makes the function on a device, and raises an
error if a package or a file of weights is missing; nothing is downloaded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["FeatureNetwork", "FrechetMetric", "ImageMeasure", "ImageMetric", "Metric", "in_library_range"]

ImageMeasure: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(images, references) in [0, 1] -> one value per image."""
FeatureNetwork: TypeAlias = Callable[[Tensor], Tensor]
"""Images in [0, 1] -> features (B, D)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageMetric:
    """A metric of one image and its original."""

    key: str
    """In reports."""
    heading: str
    """In tables."""
    digits: int
    """After the point, in tables."""
    load: Callable[[torch.device], ImageMeasure]
    """Raises `MissingDependencyError` where a package or weights are missing."""
    min_side: int = 1
    """Smallest side of images that it takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FrechetMetric:
    """A metric of a set of images and the set of their originals."""

    key: str
    """In reports; `KEY_interval` is that of its interval."""
    heading: str
    """In tables; it names the network."""
    digits: int
    """After the point, in tables."""
    load: Callable[[torch.device], FeatureNetwork]
    """Raises `MissingDependencyError` where a package or weights are missing."""


Metric: TypeAlias = ImageMetric | FrechetMetric


def in_library_range(network: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function of images in [0, 1] from one of images in [-1, 1], the range of the library."""
    return lambda *images: network(*(each * 2 - 1 for each in images))
