"""The loop over the stages of a ladder in numpy, with a graph for each stage.

    x <- noise
    for each stage:    jump, if it is not the first;    the steps of the stage, each one call of its graph

The jump is that of `stepladder.sampling.scales`; its alpha, beta and gamma come from the manifest:

    n' = sqrt(1+g) z - (sqrt(1+g) - sqrt(1-3g)) mean_block(z),    x <- alpha up(x) + beta n'
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np

from stepladder.runtime.manifest import Ladder
from stepladder.runtime.noise import Noise, ZeroNoise
from stepladder.runtime.sessions import Array
from stepladder.tiles import tiles

__all__ = ["Call", "Tiling", "run_stages", "stage_shapes"]

Call: TypeAlias = Callable[[str, Mapping[str, Array]], dict[str, Array]]
"""Runs the graph of a name with those of the inputs that it takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tiling:
    """How stages are cut that are larger than a tile."""

    side: int
    margin: int


def stage_shapes(ladder: Ladder, count: int, size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """(B, 3, h, w) at each stage, for images of (H, W)."""
    return [(count, 3, size[0] // scale, size[1] // scale) for scale in ladder.downscales]


def run_stages(
    call: Call,
    ladder: Ladder,
    latent: Array,
    *,
    noise: Noise | ZeroNoise,
    size: tuple[int, int],
    tiling: Tiling | None,
) -> Iterator[Array]:
    """The image of each stage in [-1, 1], coarse first.

    Args:
        call: Runs a graph.
        ladder: The stages.
        latent: Padded to what the ladder needs.
        noise: Of the images.
        size: (H, W) that the latent covers.
        tiling: Of large stages; None for none.
    """
    known = call("context", {"latent": latent})
    found: dict[str, Array] = {}
    for stage, shape in enumerate(stage_shapes(ladder, len(latent), size)):
        z = noise.normal(shape)
        x = z if stage == 0 else _jump(found["next_x"], z, ladder, stage)
        known |= {f"previous_{name}": value for name, value in found.items() if name != "next_x"}
        coarse = stage == 0 and ladder.downscales[0] > 1  # it sees the image as a whole
        for u, next_u in pairwise(ladder.grids[stage]):
            times = {"u": np.full(len(x), u, np.float32), "next_u": np.full(len(x), next_u, np.float32)}
            found = _step(call, f"stage{stage}", {**known, **times, "x": x}, None if coarse else tiling)
            x = found.get("next_x", x)
        yield found["clean"].clip(-1, 1)


def _step(call: Call, name: str, inputs: dict[str, Array], tiling: Tiling | None) -> dict[str, Array]:
    """One step, in tiles if the stage is larger than one."""
    size = (inputs["x"].shape[2], inputs["x"].shape[3])
    if tiling is None or max(size) <= tiling.side:
        return call(name, inputs)
    wholes: dict[str, Array] = {}
    for tile in tiles(size, tiling.side, tiling.margin):
        cut = {key: tile.cut(value) if value.ndim == 4 else value for key, value in inputs.items()}
        for key, part in call(name, cut).items():
            if key not in wholes:
                wholes[key] = np.empty(tile.whole_shape(part), part.dtype)
            tile.paste(part, wholes[key])
    return wholes


def _jump(x: Array, z: Array, ladder: Ladder, stage: int) -> Array:
    """Doubles the side of x and makes its noise white again, with white noise z, which it changes."""
    b, c, h, w = z.shape
    gamma = ladder.correlation
    across, along = np.sqrt(1 + gamma), np.sqrt(max(0.0, 1 - 3 * gamma))
    blocks = z.reshape(b, c, h // 2, 2, w // 2, 2)
    mean = blocks.mean(axis=(3, 5), keepdims=True)
    alpha, beta = ladder.rescale[stage - 1], ladder.renoise[stage - 1]
    blocks *= np.float32(beta * across)
    blocks -= np.float32(beta * (across - along)) * mean
    blocks += np.float32(alpha) * x[:, :, :, None, :, None]
    return z
