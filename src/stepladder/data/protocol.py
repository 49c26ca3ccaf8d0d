"""The images of an evaluation, cut as the pinned protocol says.

Each image is cropped to a square of its short side at the centre, then resized to the evaluation size with an
antialiased Lanczos filter (`stepladder.images.centre_crop_resize`). The order is that of the source.

Several crops of each image make a Frechet distance over few photographs more stable. The first is the central square.
The others are squares of a side log-uniform between the evaluation size and the short side, to avoid enlarging, at
random positions, half of them mirrored. The indices of image and crop seed them: every evaluation has the same ones.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from stepladder.data.files import Unreadable, describe_unreadable
from stepladder.data.source import ImageSource
from stepladder.errors import ConfigError, DataError, ImageError
from stepladder.images import RESIZE_FILTER, centre_crop_resize, load_image, to_tensor

__all__ = ["EvaluationImages", "evaluation_images"]

_log = logging.getLogger(__name__)


class EvaluationImages:
    """Iterates over (key, image of shape (3, size, size) in [-1, 1]); all crops of an image come one after the other.

    Unreadable images are skipped. `unreadable` lists those skipped so far, and one warning counts them at the end.
    """

    def __init__(self, source: ImageSource, *, size: int, limit: int | None, crops: int) -> None:
        if size < 1:
            raise ConfigError(f"Evaluation size is {size}. It must be at least 1 pixel. Pass --size, for example 256.")
        if limit is not None and limit < 1:
            raise ConfigError(f"Limit is {limit}. At least 1 image is needed. Pass a larger --limit, or none.")
        if crops < 1:
            raise ConfigError(f"Crops of each image are {crops}. At least 1 is needed. Pass a larger --crops, or none.")
        self.source = source
        self.size = size
        self.limit = limit
        self.crops = crops
        self.unreadable: list[Unreadable] = []
        """Those that were passed over so far, in the order of the source."""

    def __iter__(self) -> Iterator[tuple[str, Float[Tensor, "3 s s"]]]:
        """Starts over. Raises `DataError` at the end if no image was readable."""
        self.unreadable = []
        count = 0
        for index in range(len(self.source)):
            if count == self.limit:
                break
            key = self.source.key(index)
            try:
                image = load_image(self.source.read(index), name=key)
            except ImageError as error:
                self.unreadable.append(Unreadable(key, str(error)))
                continue
            count += 1
            for crop in range(self.crops):
                yield key, self._cut(image, index, crop)
        self.conclude(count)

    def check(self, index: int) -> Unreadable | None:
        """What is wrong with image `index` of the source; None where it can be read."""
        key = self.source.key(index)
        try:
            load_image(self.source.read(index), name=key)
        except ImageError as error:
            return Unreadable(key, str(error))
        return None

    def squares(self, readable: Sequence[int], places: range) -> Iterator[Float[Tensor, "3 s s"]]:
        """Some of the images, by their places among all that the iteration gives; an image is opened once.

        Args:
            readable: Numbers in the source of the images that it takes, all of them readable.
            places: Which.

        Raises:
            ImageError: If one of them cannot be read any more.
        """
        opened: tuple[int, Image.Image] | None = None
        for place in places:
            photograph, crop = divmod(place, self.crops)
            index = readable[photograph]
            if opened is None or opened[0] != index:
                opened = index, load_image(self.source.read(index), name=self.source.key(index))
            yield self._cut(opened[1], index, crop)

    def conclude(self, count: int, *, silent: bool = False) -> None:
        """Says which images were passed over, once `count` images were taken; not if `silent`.

        Raises:
            DataError: If that is none.
        """
        if count == 0:
            first = self.unreadable[0]
            raise DataError(
                f"None of the {len(self.source)} images of {self.source.name} can be read. At least one is needed; the "
                f"first that failed is {first.key}: {first.reason} Check the data."
            )
        if self.unreadable and not silent:
            _log.warning(describe_unreadable(self.unreadable, len(self.source)))

    def _cut(self, image: Image.Image, index: int, crop: int) -> Float[Tensor, "3 s s"]:
        if crop == 0:
            return to_tensor(centre_crop_resize(image, self.size))
        return to_tensor(_square(image, self.size, np.random.default_rng((index, crop))))


def evaluation_images(source: ImageSource, *, size: int, limit: int | None = None, crops: int = 1) -> EvaluationImages:
    """The first `limit` readable images of a source, cut to `size` x `size` by the pinned protocol.

    Args:
        source: The images.
        size: Side of the square in pixels.
        limit: How many images at most; None for all.
        crops: Squares cut from each image; the first is the central one.

    Returns:
        An iterable of (key, image of shape (3, size, size) in [-1, 1]).

    Raises:
        ConfigError: If `size`, `limit` or `crops` is below 1.
        DataError: While iterating, if no image is readable.
    """
    return EvaluationImages(source, size=size, limit=limit, crops=crops)


def _square(image: Image.Image, size: int, generator: np.random.Generator) -> Image.Image:
    """A random square of an image, its side between `size` and the short side if that is longer, at `size`."""
    u_side, u_left, u_top, u_flip = generator.random(4)
    short = min(image.size)
    side = short if short <= size else round(size * math.exp(u_side * math.log(short / size)))
    left, top = (int(u * (length - side + 1)) for u, length in zip((u_left, u_top), image.size, strict=True))
    square = image.crop((left, top, left + side, top + side)).resize((size, size), RESIZE_FILTER)
    return square.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if u_flip < 0.5 else square
