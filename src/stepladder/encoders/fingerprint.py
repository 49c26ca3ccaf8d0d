"""Fingerprints of frozen encoders: their latent of one fixed image.

The image is computed, not stored: gratings of four frequencies, a bright disc and a ramp, the same on every machine.
The fingerprint is the latent of the cell in its middle, one number per channel. Two encoders count as the same if the
root mean square of the difference is within 5 % of that of the fingerprint: half precision and other kernels change it
by about 1 %, another encoder by tens of per cent.
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["TOLERANCE", "distance", "fixed_image", "take_fingerprint"]

TOLERANCE = 0.05
"""Largest relative difference of fingerprints of one encoder."""
_SIDE = 128
_DIGITS = 5


def fixed_image() -> Float[Tensor, "1 3 s s"]:
    """The image, in [-1, 1]; its side is a multiple of all strides up to 128."""
    axis = (torch.arange(_SIDE, dtype=torch.float64) + 0.5) / _SIDE
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    turn = 2 * math.pi
    red = 0.5 * torch.sin(turn * 3 * x) + 0.3 * torch.sin(turn * 17 * y)
    green = 0.5 * torch.sin(turn * (5 * x + 7 * y)) + 0.4 * y
    blue = 0.4 * torch.cos(turn * 31 * (x - y)) - 0.4 * x
    disc = (((x - 0.55) ** 2 + (y - 0.45) ** 2) < 0.04).double()
    return (torch.stack([red, green, blue])[None] * (1 - 0.5 * disc) + 0.4 * disc).clamp(-1, 1).float()


def take_fingerprint(encode: Callable[[Tensor], Tensor]) -> list[float]:
    """The fingerprint of an encoder of images in [-1, 1] to latents (B, c, h, w)."""
    latent = encode(fixed_image())
    middle = latent[0, :, latent.shape[2] // 2, latent.shape[3] // 2].double().cpu()
    return [float(f"{value:.{_DIGITS}g}") for value in middle.tolist()]


def distance(found: Sequence[float], expected: Sequence[float]) -> float:
    """Relative difference of two fingerprints; infinite where they have different lengths."""
    if len(found) != len(expected):
        return math.inf
    scale = math.hypot(*expected)
    return math.dist(found, expected) / scale if scale else math.inf
