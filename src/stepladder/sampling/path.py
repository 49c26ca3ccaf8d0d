"""Inside a stage: the straight path from the end of the jump to the end of the stage.

With local time u from 1 to 0, X the clean image at the scale of the stage and one white noise n for both ends,

    x_start = (1-s) UD X + s n        x_end = (1-e) X + e n        UD = up(down(.)), the low-pass of `scales`
    x_u = (1-u) x_end + u x_start     w = dx/du = x_start - x_end

At the first stage x_start = n. A ladder with K = 1 has s = 1 and e = 0: this is then the ordinary path of `flow`, bit
for bit.

Reference: Pyramidal Flow Matching (Jin et al., 2024), section 3.2, https://arxiv.org/abs/2410.05954
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stepladder.sampling.flow import expand_time
from stepladder.sampling.scales import low_pass
from stepladder.sampling.stages import Stage

__all__ = [
    "NOISE_FLOOR",
    "LinearEstimate",
    "PathPoint",
    "clean_from_velocity",
    "linear_estimate",
    "noise_from_clean",
    "path",
    "velocity_from_clean",
]

NOISE_FLOOR = 1e-3
"""Lower clamp of the noise level by which `velocity_from_clean` divides when sampling. Only the last steps of grids of
about a hundred steps and more start from lower levels."""


@dataclass(frozen=True, slots=True)
class PathPoint:
    """A training point inside a stage."""

    x: Float[Tensor, "b c h w"]
    """x_u, the input of the network."""
    velocity: Float[Tensor, "b c h w"]
    """w = x_start - x_end, its direction."""


@dataclass(frozen=True, slots=True)
class LinearEstimate:
    """The best linear estimate of an image, from a noisy image and a base."""

    clean: Float[Tensor, "b c h w"]
    """Estimate of the clean image."""
    deviation: Float[Tensor, "b 1 1 1"]
    """Standard deviation of its error."""
    innovation: Float[Tensor, "b c h w"]
    """The part of the noisy image that the base does not explain, at unit scale."""


def path(
    clean: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], u: Float[Tensor, " b"], stage: Stage
) -> PathPoint:
    """The point x_u of a stage and its velocity.

    Args:
        clean: X, the image at the scale of the stage, (B, C, h, w); h and w even unless the stage is the first.
        noise: White noise of the same shape, the same for both ends.
        u: Local times in [0, 1], float32, (B,).
        stage: Which stage.
    """
    u = expand_time(u, clean)
    start = (1 - stage.t_start) * _at_start(clean, stage) + stage.t_start * noise
    end = (1 - stage.t_end) * clean + stage.t_end * noise
    return PathPoint(x=(1 - u) * end + u * start, velocity=start - end)


def velocity_from_clean(
    x: Float[Tensor, "b c h w"],
    clean: Float[Tensor, "b c h w"],
    u: Float[Tensor, " b"],
    stage: Stage,
    *,
    floor: float = NOISE_FLOOR,
) -> Float[Tensor, "b c h w"]:
    """The velocity that an estimate of the clean image implies (x-prediction).

    With UD = up(down(.)):

        n = (x_u - (1-u)(1-e) X - u (1-s) UD X) / ((1-u) e + u s)
        w = (1-s) UD X - (1-e) X + (s-e) n

    The denominator is the noise level, clamped from below by `floor` so that w stays finite on the closed time range.
    """
    fine, coarse = _parts(clean, stage)
    return coarse - fine + (stage.t_start - stage.t_end) * _noise(x, fine, coarse, u, stage, floor)


def noise_from_clean(
    x: Float[Tensor, "b c h w"], clean: Float[Tensor, "b c h w"], u: Float[Tensor, " b"], stage: Stage
) -> Float[Tensor, "b c h w"]:
    """The noise n that an estimate of the clean image implies, as in `velocity_from_clean`."""
    return _noise(x, *_parts(clean, stage), u, stage, NOISE_FLOOR)


def clean_from_velocity(
    x: Float[Tensor, "b c h w"], velocity: Float[Tensor, "b c h w"], u: Float[Tensor, " b"], stage: Stage
) -> Float[Tensor, "b c h w"]:
    """The clean image that a velocity implies; the inverse of `velocity_from_clean`.

    Both ends follow from x_u and w. The part that `up(down(.))` keeps and the part that it removes are different
    mixtures of image and noise, each solved separately; `up(down(.))` is a projection, so the two parts add up.
    """
    u = expand_time(u, x)
    start, end = x + (1 - u) * velocity, x - u * velocity
    s, e = stage.t_start, stage.t_end
    noise_part = _at_start(start, stage)
    kept_noise = ((1 - e) * noise_part - (1 - s) * _at_start(end, stage)) / (s - e)
    removed_noise = (start - noise_part) / s
    return (end - e * (kept_noise + removed_noise)) / (1 - e)


def linear_estimate(
    x: Float[Tensor, "b c h w"], base: Float[Tensor, "b c h w"], u: Float[Tensor, " b"], stage: Stage
) -> LinearEstimate:
    """The best linear estimate of X from x_u and a base B whose error is white, of deviation r = `stage.residual`.

    With a = (1-u)(1-e), the gain of detail in x_u, t the noise level, and m(B) the value of x_u for X = B without
    noise:

        X_hat = B + a r^2 / (a^2 r^2 + t^2) (x_u - m(B)),        error of deviation  r t / (a^2 r^2 + t^2)^(1/2)

    A network that adds to X_hat, in units of that deviation, has a target of unit scale at every stage and noise level,
    so that none dominates the loss and none vanishes in it. If the residual was not measured, the estimate is the base,
    at unit deviation, and the innovation is the noisy image.

    Reference: Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022), section 5,
    https://arxiv.org/abs/2206.00364, with the base as the mean of the data and r as their deviation.
    """
    if stage.residual is None:
        return LinearEstimate(clean=base, deviation=torch.ones_like(u)[:, None, None, None], innovation=x)
    level, weight = expand_time(stage.noise_level(u), x), expand_time(u, x)
    gain = (1 - weight) * (1 - stage.t_end)
    innovation = x - gain * base - weight * (1 - stage.t_start) * _at_start(base, stage)
    spread = (gain.square() * stage.residual**2 + level.square()).sqrt()
    innovation = innovation / spread
    return LinearEstimate(
        clean=base + gain * stage.residual**2 / spread * innovation,
        deviation=stage.residual * level / spread,
        innovation=innovation,
    )


def _parts(clean: Tensor, stage: Stage) -> tuple[Tensor, Tensor]:
    """The parts of the clean image in the end and in the start of a stage."""
    return (1 - stage.t_end) * clean, (1 - stage.t_start) * _at_start(clean, stage)


def _noise(x: Tensor, fine: Tensor, coarse: Tensor, u: Tensor, stage: Stage, floor: float) -> Tensor:
    level = expand_time(stage.noise_level(u).clamp_min(floor), x)
    u = expand_time(u, x)
    return (x - (1 - u) * fine - u * coarse) / level


def _at_start(images: Tensor, stage: Stage) -> Tensor:
    """The part of an image in the start of a stage: its low-pass, or all of it at the first stage."""
    return images if stage.t_start == 1.0 else low_pass(images)
