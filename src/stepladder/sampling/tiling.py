"""Large images in overlapping tiles: a network needs the memory of a tile, and the image stays the same.

The tiles lie edge to edge; around each, the network sees a margin of m more pixels (`stepladder.tiles`).

The output of a convolutional network at a pixel depends only on pixels within some radius r, and hardly on the distant
ones among them. With m >= r, the kept part of each tile equals the output on the whole image, up to rounding; with the
smaller margins of networks, up to far less than a step of 8 bits. So there is nothing to blend, and no seam. At a
border of the image there is no margin: zero padding acts there as on the whole image.

Noise is drawn for the whole image, not in tiles, so a seed gives the same image however it is cut.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from stepladder.sampling.denoiser import Denoised, Denoiser, SpatialDenoiser
from stepladder.sampling.stages import Stage
from stepladder.tiles import Tile, tiles

__all__ = ["in_tiles", "tiled"]


def tiled(denoiser: SpatialDenoiser, side: int, margin: int) -> Denoiser:
    """The denoiser that evaluates large stages in tiles.

    The first stage of a ladder, which is small, is never tiled: there the denoiser sees the whole image. A ladder with
    K = 1 has only one stage, which is tiled.

    Args:
        denoiser: Of which parts answer for parts of the image.
        side: Of a tile without its margin; a stage whose sides are no longer than this is not tiled.
        margin: Pixels to see around a tile; like `side`, a multiple of the cells of every input.
    """

    def denoise(x: Tensor, u: Tensor, stage: Stage, previous: Denoised | None) -> Denoised:
        if max(x.shape[2:]) <= side or (stage.index == 0 and stage.downscale > 1):
            return denoiser(x, u, stage, previous)
        clean, features = torch.empty_like(x), list[Tensor]()
        for tile in tiles((x.shape[2], x.shape[3]), side, margin):
            lower = None if previous is None else previous.cut(tile.cut)
            found = denoiser.cut(tile.cut)(tile.cut(x), u, stage, lower)
            tile.paste(found.clean, clean)
            if stage.downscale > 1:  # after the last stage nobody reads them
                _paste(tile, found.features, features)
        return Denoised(clean, tuple(features))

    return denoise


def in_tiles(
    network: Callable[[Tensor], Sequence[Tensor]], images: Float[Tensor, "b c h w"], *, side: int, margin: int
) -> list[Tensor]:
    """The outputs (B, d, h2, w2) of a network of images or latents, tile by tile, each on a grid of its own.

    Args:
        network: Of which parts answer for parts of the image.
        images: Whose sides are multiples of the cells of its grids.
        side: Of a tile without its margin; like `margin`, a multiple of the cells.
        margin: Pixels to see around a tile.
    """
    wholes: list[Tensor] = []
    for tile in tiles((images.shape[2], images.shape[3]), side, margin):
        _paste(tile, network(tile.cut(images)), wholes)
    return wholes


def _paste(tile: Tile, parts: Sequence[Tensor], wholes: list[Tensor]) -> None:
    """Writes what is kept of parts into the wholes, which the first tile makes."""
    if not wholes:
        wholes.extend(part.new_empty(tile.whole_shape(part)) for part in parts)
    for part, whole in zip(parts, wholes, strict=True):
        tile.paste(part, whole)
