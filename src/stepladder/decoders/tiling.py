"""Large images in overlapping tiles: a network takes the memory of a tile, and the image stays the same.

The tiles of a side of length L lie edge to edge; around each, the network sees a margin of m more pixels:

    kept  [a, b)     a = 0, T, 2T, ...;  b = min(a + T, L)
    read  [a - m, b + m), cut at the borders of the image

What a convolutional network says of a pixel depends on the pixels within some radius r alone, and on those far away
hardly at all. With m >= r, what is kept of each tile is what the network says of the whole image, up to rounding; with
the smaller m for which networks ask, up to far less than a step of 8 bits. So there is nothing to blend, and no seam.
At a border of the image there is no margin: zero padding acts there as it does on the whole.

Nothing random happens in a tile. The noise of an image is drawn for all of it, so that a seed means the same image
however it is cut.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Cut", "Tile", "predict_in_tiles", "tiles"]

Cut: TypeAlias = Callable[[Tensor], Tensor]
"""Cuts the same part out of a tensor on any grid that covers the image: pixels, half of them, cells of a latent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """A part of an image, as ranges of rows and of columns."""

    size: tuple[int, int]
    """(H, W) of the whole."""
    kept: tuple[range, range]
    """The pixels for which this tile answers; no two tiles share one."""
    read: tuple[range, range]
    """The pixels that the network sees: those, and a margin."""

    def cut(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """What is read, out of a tensor whose grid covers the whole; its cells must not straddle the edge of a tile."""
        rows, columns = (
            slice(_scaled(span.start, side, cells), _scaled(span.stop, side, cells))
            for span, side, cells in zip(self.read, self.size, images.shape[2:], strict=True)
        )
        return images[:, :, rows, columns]

    def paste(self, part: Float[Tensor, "b c h w"], whole: Float[Tensor, "b c h2 w2"]) -> None:
        """Writes what is kept of a `part` that covers what was read into the `whole`."""
        inner = [slice(k.start - r.start, k.stop - r.start) for k, r in zip(self.kept, self.read, strict=True)]
        outer = [slice(k.start, k.stop) for k in self.kept]
        whole[:, :, outer[0], outer[1]] = part[:, :, inner[0], inner[1]]


def tiles(size: tuple[int, int], side: int, margin: int) -> Iterator[Tile]:
    """The tiles of an image of (H, W), row by row.

    Args:
        size: (H, W).
        side: Of a tile without its margin; those at the right and at the bottom may be smaller.
        margin: Pixels to see on each side of it where the image has them.
    """
    rows, columns = (list(_spans(length, side, margin)) for length in size)
    for kept_rows, read_rows in rows:
        for kept_columns, read_columns in columns:
            yield Tile(size=size, kept=(kept_rows, kept_columns), read=(read_rows, read_columns))


def predict_in_tiles(
    predict: Callable[[Cut], Tensor], x: Float[Tensor, "b c h w"], *, side: int, margin: int
) -> Float[Tensor, "b c h w"]:
    """Puts together what `predict` says of each tile.

    Args:
        predict: Predicts for the part that the function which it gets cuts out of each of its inputs.
        x: The noisy image; only its shape and kind matter.
        side: Of a tile without its margin.
        margin: Pixels to see around it; like `side`, a multiple of the cells of every input.
    """
    whole = torch.empty_like(x)
    for tile in tiles((x.shape[2], x.shape[3]), side, margin):
        tile.paste(predict(tile.cut), whole)
    return whole


def _spans(length: int, side: int, margin: int) -> Iterator[tuple[range, range]]:
    """What is kept and what is read of a line of pixels, tile by tile."""
    for start in range(0, length, side):
        stop = min(start + side, length)
        yield range(start, stop), range(max(0, start - margin), min(stop + margin, length))


def _scaled(position: int, side: int, cells: int) -> int:
    """A position on a line of `side` pixels, in cells of a grid with `cells` of them."""
    scaled, rest = divmod(position * cells, side)
    assert rest == 0, f"pixel {position} of {side} lies inside one of {cells} cells"
    return scaled
