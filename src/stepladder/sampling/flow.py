"""The straight path between an image and noise.

    x_t = (1 - t) x0 + t noise,     t = 0 image,  t = 1 noise
    v   = d x_t / d t = noise - x0

so any two of (x_t, x0, noise, v) give the others:

    x0 = x_t - t v,     noise = x_t + (1 - t) v

Times are float32 always, also under autocast: bfloat16 has 8 bits, so that t = 0.999 would be 1.

Reference: Flow Matching for Generative Modeling (Lipman et al., 2022), https://arxiv.org/abs/2210.02747
"""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["clean_from_velocity", "expand_time", "interpolate", "noise_from_velocity", "velocity"]


def expand_time(t: Float[Tensor, " b"], like: Tensor) -> Tensor:
    """Shapes times (B,) as (B, 1, ..., 1) to multiply `like` (B, ...), in float32.

    Raises:
        ValueError: If `t` is not one float32 time for each item of `like`.
    """
    if t.dtype != torch.float32:
        raise ValueError(f"Times have dtype {t.dtype}. Accepted: torch.float32. Convert them with t.float().")
    if t.shape != like.shape[:1]:
        raise ValueError(f"Times have shape {tuple(t.shape)}. Accepted: ({like.shape[0]},), one for each image.")
    return t.reshape(-1, *(1 for _ in like.shape[1:]))


def interpolate(x0: Float[Tensor, "b ..."], noise: Float[Tensor, "b ..."], t: Float[Tensor, " b"]) -> Tensor:
    """The point x_t = (1 - t) x0 + t noise."""
    t = expand_time(t, x0)
    return (1 - t) * x0 + t * noise


def velocity(x0: Float[Tensor, "b ..."], noise: Float[Tensor, "b ..."]) -> Tensor:
    """The velocity v = noise - x0, which does not depend on t."""
    return noise - x0


def clean_from_velocity(x_t: Float[Tensor, "b ..."], v: Float[Tensor, "b ..."], t: Float[Tensor, " b"]) -> Tensor:
    """The image x0 = x_t - t v."""
    return x_t - expand_time(t, x_t) * v


def noise_from_velocity(x_t: Float[Tensor, "b ..."], v: Float[Tensor, "b ..."], t: Float[Tensor, " b"]) -> Tensor:
    """The noise x_t + (1 - t) v."""
    return x_t + (1 - expand_time(t, x_t)) * v
