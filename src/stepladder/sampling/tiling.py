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

from jaxtyping import Float
from torch import Tensor

from stepladder.sampling.denoiser import Denoised, Denoiser, SpatialDenoiser
from stepladder.sampling.stages import Stage

__all__ = ["Tile", "in_tiles", "tiled", "tiles"]


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
            _scaled(span, side, cells) for span, side, cells in zip(self.read, self.size, images.shape[2:], strict=True)
        )
        return images[:, :, rows, columns]

    def paste(self, part: Float[Tensor, "b c h w"], whole: Float[Tensor, "b c h2 w2"]) -> None:
        """Writes what is kept of a `part` that covers what was read into the `whole`, on any grid."""
        inner, outer = [], []
        for kept, read, side, cells in zip(self.kept, self.read, self.size, whole.shape[2:], strict=True):
            place, seen = _scaled(kept, side, cells), _scaled(read, side, cells)
            outer.append(place)
            inner.append(slice(place.start - seen.start, place.stop - seen.start))
        whole[:, :, outer[0], outer[1]] = part[:, :, inner[0], inner[1]]

    def whole_like(self, part: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """An empty tensor for the whole, on the grid of a `part` that covers what was read."""
        height, width = (
            cells * side // len(span) for cells, side, span in zip(part.shape[2:], self.size, self.read, strict=True)
        )
        return part.new_empty((*part.shape[:2], height, width))


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


def tiled(denoiser: SpatialDenoiser, side: int, margin: int) -> Denoiser:
    """The denoiser that looks at large stages in tiles.

    The first stage of a ladder, which is small, is never tiled: there the denoiser sees the image as a whole. A ladder
    with K = 1 has no such stage, and its only one is tiled.

    Args:
        denoiser: Of which parts answer for parts of the image.
        side: Of a tile without its margin; a stage whose sides are no longer than this is not tiled.
        margin: Pixels to see around a tile; like `side`, a multiple of the cells of every input.
    """

    def denoise(x: Tensor, u: Tensor, stage: Stage, previous: Denoised | None) -> Denoised:
        if max(x.shape[2:]) <= side or (stage.index == 0 and stage.downscale > 1):
            return denoiser(x, u, stage, previous)
        wholes: list[Tensor] = []
        for tile in tiles((x.shape[2], x.shape[3]), side, margin):
            lower = None if previous is None else previous.cut(tile.cut)
            found = denoiser.cut(tile.cut)(tile.cut(x), u, stage, lower)
            parts = (found.clean, *found.features)
            wholes = wholes or [tile.whole_like(part) for part in parts]
            for part, whole in zip(parts, wholes, strict=True):
                tile.paste(part, whole)
        return Denoised(wholes[0], tuple(wholes[1:]))

    return denoise


def in_tiles(
    network: Callable[[Tensor], Tensor], images: Float[Tensor, "b c h w"], *, side: int, margin: int
) -> Float[Tensor, "b d h2 w2"]:
    """What a network of images says of them, on a grid of its own, tile by tile.

    Args:
        network: Of which parts answer for parts of the image.
        images: Whose sides are multiples of the cells of its grid.
        side: Of a tile without its margin; like `margin`, a multiple of the cells.
        margin: Pixels to see around a tile.
    """
    whole: Tensor | None = None
    for tile in tiles((images.shape[2], images.shape[3]), side, margin):
        part = network(tile.cut(images))
        whole = tile.whole_like(part) if whole is None else whole
        tile.paste(part, whole)
    assert whole is not None
    return whole


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
