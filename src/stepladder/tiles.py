"""Tiles: parts of an image that lie edge to edge, each with a margin around it that a network sees as well.

The tiles of a side of length L; around each, the network sees a margin of m more pixels:

    kept  [a, b)     a = 0, T, 2T, ...;  b = min(a + T, L)
    read  [a - m, b + m), cut at the borders of the image

A tile cuts the same part out of every array (B, C, H, W) whose grid covers the image, of torch or of numpy.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["Tile", "tiles"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """A part of an image, as ranges of rows and of columns."""

    size: tuple[int, int]
    """(H, W) of the whole."""
    kept: tuple[range, range]
    """The pixels for which this tile answers; no two tiles share one."""
    read: tuple[range, range]
    """The pixels that the network sees: those, and a margin."""

    def cut(self, images: Any) -> Any:
        """What is read, out of an array whose grid covers the whole; its cells must not straddle the edge of a tile."""
        rows, columns = (
            _scaled(span, side, cells) for span, side, cells in zip(self.read, self.size, images.shape[2:], strict=True)
        )
        return images[:, :, rows, columns]

    def paste(self, part: Any, whole: Any) -> None:
        """Writes what is kept of a `part` that covers what was read into the `whole`, on any grid."""
        inner, outer = [], []
        for kept, read, side, cells in zip(self.kept, self.read, self.size, whole.shape[2:], strict=True):
            place, seen = _scaled(kept, side, cells), _scaled(read, side, cells)
            outer.append(place)
            inner.append(slice(place.start - seen.start, place.stop - seen.start))
        whole[:, :, outer[0], outer[1]] = part[:, :, inner[0], inner[1]]

    def whole_shape(self, part: Any) -> tuple[int, int, int, int]:
        """Shape of the whole, on the grid of a `part` that covers what was read."""
        height, width = (
            cells * side // len(span) for cells, side, span in zip(part.shape[2:], self.size, self.read, strict=True)
        )
        return int(part.shape[0]), int(part.shape[1]), height, width


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


def _spans(length: int, side: int, margin: int) -> Iterator[tuple[range, range]]:
    """What is kept and what is read of a line of pixels, tile by tile."""
    for start in range(0, length, side):
        stop = min(start + side, length)
        yield range(start, stop), range(max(0, start - margin), min(stop + margin, length))


def _scaled(span: range, side: int, cells: int) -> slice:
    """A range of a line of `side` pixels, in cells of a grid with `cells` of them."""
    (start, rest), (stop, more) = (divmod(position * cells, side) for position in (span.start, span.stop))
    assert rest == more == 0, f"{span} of {side} pixels does not end between two of {cells} cells"
    return slice(start, stop)
