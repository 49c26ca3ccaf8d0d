"""The images of an evaluation, cut as the pinned protocol says.

Each image is cropped to a square of its short side at the centre, then resized to the evaluation size with an
antialiased Lanczos filter (`stepladder.images.centre_crop_resize`). The order is that of the source.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor

from stepladder.data.files import Unreadable, describe_unreadable
from stepladder.data.source import ImageSource
from stepladder.errors import ConfigError, DataError, ImageError
from stepladder.images import centre_crop_resize, load_image, to_tensor

__all__ = ["EvaluationImages", "evaluation_images"]

_log = logging.getLogger(__name__)


class EvaluationImages:
    """Iterates over (key, image of shape (3, size, size) in [-1, 1]); unreadable images are passed over.

    `unreadable` lists the images that were passed over so far. One warning counts them at the end.
    """

    def __init__(self, source: ImageSource, *, size: int, limit: int | None) -> None:
        if size < 1:
            raise ConfigError(f"Evaluation size is {size}. It must be at least 1 pixel. Pass --size, for example 256.")
        if limit is not None and limit < 1:
            raise ConfigError(f"Limit is {limit}. At least 1 image is needed. Pass a larger --limit, or none.")
        self.source = source
        self.size = size
        self.limit = limit
        self.unreadable: list[Unreadable] = []

    def __iter__(self) -> Iterator[tuple[str, Float[Tensor, "3 s s"]]]:
        """Starts over. Raises `DataError` at the end if no image was readable."""
        self.unreadable = []
        count = 0
        for index in range(len(self.source)):
            if count == self.limit:
                break
            key = self.source.key(index)
            try:
                image = centre_crop_resize(load_image(self.source.read(index), name=key), self.size)
            except ImageError as error:
                self.unreadable.append(Unreadable(key, str(error)))
                continue
            count += 1
            yield key, to_tensor(image)
        if count == 0:
            first = self.unreadable[0]
            raise DataError(
                f"None of the {len(self.source)} images of {self.source.name} can be read. At least one is needed; the "
                f"first that failed is {first.key}: {first.reason} Check the data."
            )
        if self.unreadable:
            _log.warning(describe_unreadable(self.unreadable, len(self.source)))


def evaluation_images(source: ImageSource, *, size: int, limit: int | None = None) -> EvaluationImages:
    """The first `limit` readable images of a source, cut to `size` x `size` by the pinned protocol.

    Args:
        source: The images.
        size: Side of the square in pixels.
        limit: How many images at most; None for all.

    Returns:
        An iterable of (key, image of shape (3, size, size) in [-1, 1]).

    Raises:
        ConfigError: If `size` or `limit` is below 1.
        DataError: While iterating, if no image is readable.
    """
    return EvaluationImages(source, size=size, limit=limit)
