"""Rotary positions on coordinates that all scales share.

Positions are numbers in [-1, 1], never indices: the first and last patch of every line of patches are at -1 and 1, so
that a corner of the image has the same coordinates at every scale, in the encoder and in the decoder. A position p
rotates the pairs (a, b) of values of queries and keys by angles p w_j, with geometric frequencies w_j:

    (a, b) -> (a cos - b sin, a sin + b cos)

which keeps their norm, and makes a product of query and key depend on the difference of positions only. On images, half
of the pairs rotate with the row and half with the column.

Reference: RoFormer (Su et al., 2021), https://arxiv.org/abs/2104.09864; on images: Rotary Position Embedding for Vision
Transformer (Heo et al., 2024), https://arxiv.org/abs/2403.13298
"""

import math
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["LatentPositions", "grid_angles", "rotate", "token_angles", "token_grid", "turns"]

LatentPositions: TypeAlias = Literal["none", "1d", "cross", "grid"]
"""Positions of latent tokens.

    "none" no positions: they are not rotated
    "1d" on a line of their own, along which all pairs rotate "cross" on a row below the image "grid" spread over the
    image, row by row
"""

_MIN_TURNS, _MAX_TURNS = 0.125, 8.0
"""Turns of the slowest and of the fastest pair on the way from -1 to 1."""
_ROW_BELOW = 1.25
"""Vertical coordinate of "cross": outside of the image, whose last row of patches is at 1."""


def grid_angles(rows: int, columns: int, pairs: int, device: torch.device | None = None) -> Float[Tensor, "n pairs"]:
    """Angles of the cells of a grid, row by row, in float32.

    Args:
        rows: Cells from top to bottom.
        columns: Cells from left to right.
        pairs: Pairs of values in a head, an even number.
        device: Where to make them.
    """
    y, x = _line(rows, device), _line(columns, device)
    return _plane(y.repeat_interleave(columns), x.repeat(rows), pairs)


def token_angles(
    kind: LatentPositions, count: int, pairs: int, device: torch.device | None = None
) -> Float[Tensor, "n pairs"]:
    """Angles of `count` latent tokens."""
    match kind:
        case "none":
            return torch.zeros(count, pairs, device=device)
        case "1d":
            return _line(count, device)[:, None] * _frequencies(pairs, device)
        case "cross":
            line = _line(count, device)
            return _plane(torch.full_like(line, _ROW_BELOW), line, pairs)
        case "grid":
            return grid_angles(*token_grid(count), pairs, device)


def token_grid(count: int) -> tuple[int, int]:
    """Rows and columns of `count` latent tokens that are spread over an image: as square as possible."""
    rows = next(n for n in range(math.isqrt(count), 0, -1) if count % n == 0)
    return rows, count // rows


def turns(angles: Float[Tensor, "n pairs"]) -> Float[Tensor, "2 n pairs"]:
    """Cosines and sines of angles, computed once and used by all blocks."""
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Float[Tensor, "b heads n d"], turns: Float[Tensor, "2 n d//2"]) -> Float[Tensor, "b heads n d"]:
    """Rotates value i of each head together with value i + d/2, in real arithmetic.

    Args:
        x: Queries or keys.
        turns: Cosines and sines of their angles, from `turns`.
    """
    cos, sin = turns.to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def _line(count: int, device: torch.device | None) -> Float[Tensor, " count"]:
    """From -1 to 1; a single position is in the middle."""
    return torch.linspace(-1, 1, count, device=device) if count > 1 else torch.zeros(1, device=device)


def _plane(y: Float[Tensor, " n"], x: Float[Tensor, " n"], pairs: int) -> Float[Tensor, "n pairs"]:
    frequencies = _frequencies(pairs // 2, y.device)
    return torch.cat([y[:, None] * frequencies, x[:, None] * frequencies], dim=1)


def _frequencies(count: int, device: torch.device | None) -> Float[Tensor, " count"]:
    """In radians per unit of the coordinate; -1 to 1 is two units."""
    exponents = torch.arange(count, device=device, dtype=torch.float32) / max(1, count - 1)
    return math.pi * _MIN_TURNS * (_MAX_TURNS / _MIN_TURNS) ** exponents
