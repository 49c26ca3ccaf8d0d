"""Large images in overlapping tiles: a network needs the memory of a tile, and the image stays the same.

The tiles lie edge to edge; around each, the network sees a margin of m more pixels (`stepladder.tiles`).

The output of a convolutional network at a pixel depends only on pixels within some radius r, and hardly on the distant
ones among them. With m >= r, the kept part of each tile equals the output on the whole image, up to rounding; with the
smaller margins of networks, up to far less than a step of 8 bits. So there is nothing to blend, and no seam. At a
border of the image there is no margin: zero padding acts there as on the whole image.

Noise is drawn for the whole image, not in tiles, so a seed gives the same image however it is cut.
"""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from stepladder.sampling.denoiser import Denoised, Denoiser, SpatialDenoiser
from stepladder.sampling.stages import Stage
from stepladder.tiles import tiles

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
        wholes: list[Tensor] = []
        for tile in tiles((x.shape[2], x.shape[3]), side, margin):
            lower = None if previous is None else previous.cut(tile.cut)
            found = denoiser.cut(tile.cut)(tile.cut(x), u, stage, lower)
            parts = (found.clean, *found.features)
            wholes = wholes or [part.new_empty(tile.whole_shape(part)) for part in parts]
            for part, whole in zip(parts, wholes, strict=True):
                tile.paste(part, whole)
        return Denoised(wholes[0], tuple(wholes[1:]))

    return denoise


def in_tiles(
    network: Callable[[Tensor], Tensor], images: Float[Tensor, "b c h w"], *, side: int, margin: int
) -> Float[Tensor, "b d h2 w2"]:
    """The output of a network of images, tile by tile; it may be on a grid of its own.

    Args:
        network: Of which parts answer for parts of the image.
        images: Whose sides are multiples of the cells of its grid.
        side: Of a tile without its margin; like `margin`, a multiple of the cells.
        margin: Pixels to see around a tile.
    """
    whole: Tensor | None = None
    for tile in tiles((images.shape[2], images.shape[3]), side, margin):
        part = network(tile.cut(images))
        whole = part.new_empty(tile.whole_shape(part)) if whole is None else whole
        tile.paste(part, whole)
    assert whole is not None
    return whole
