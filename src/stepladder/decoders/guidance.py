"""Classifier-free guidance on the latent.

    prediction = unconditional + scale (conditional - unconditional)

    scale 0      what the network says without a latent
    scale 1      what it says with one: no guidance, and no second evaluation
    between      a mixture of both
    beyond 1     further from the first than the second is

and no scale means anything else anywhere. (Ho & Salimans write w for our scale - 1.) "Without a latent" is a learned
null latent, which training puts in the place of some latents (`loss.context_dropout`).

What is combined. At given x and u the clean image and the velocity are affine functions of each other, also where the
noise level is clamped, because the clamp does not look at the prediction; and the weights of the two, 1 - scale and
scale, sum to 1. So it is the same to combine either, and the network's own output is combined, once.

Interval. Guidance helps at middle noise levels and does harm at high ones, where it narrows what an image can become;
at low ones it changes little. Outside of `interval`, on the global noise coordinate, the scale is therefore 1.

Two evaluations, one after the other, instead of one of a doubled batch: they need no more memory than a decode without
guidance, so that tiles bound it as before; a compiled network sees the shapes that it has seen; and what the network
says with a latent is, bit for bit, what it says without guidance. A batch of images fills a device as it is.

References: Classifier-Free Diffusion Guidance (Ho & Salimans, 2022), https://arxiv.org/abs/2207.12598; Applying
Guidance in a Limited Interval Improves Sample and Distribution Quality in Diffusion Models (Kynkaanniemi et al., 2024),
https://arxiv.org/abs/2404.07724
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stepladder.errors import ConfigError
from stepladder.flow import expand_time
from stepladder.samplers import local_times, steps_per_stage
from stepladder.stages import StageSchedule

__all__ = ["GuidanceConfig", "evaluations_per_stage", "guide"]


@dataclass(frozen=True, kw_only=True)
class GuidanceConfig:
    """Classifier-free guidance on the latent."""

    scale: float = 1.0
    """0 decodes without the latent, 1 with it, larger scales go beyond; any but 1 needs a null latent."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Lowest and highest noise coordinate at which the scale holds; it is 1 elsewhere."""

    def __post_init__(self) -> None:
        if not 0 <= self.scale < math.inf:
            raise ConfigError(
                f"Guidance scale {self.scale} is negative or no number. Pass 0 or more, 1 for none; usually 1 to 3."
            )
        low, high = self.interval
        if not 0 <= low <= high <= 1:
            raise ConfigError(
                f"Guidance interval {list(self.interval)} is not two rising numbers in [0, 1]. They are noise "
                "coordinates: pass [0.0, 1.0] for all of them."
            )

    @property
    def is_off(self) -> bool:
        """Whether it changes nothing."""
        return self.scale == 1

    def scales(self, coordinate: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The scale of each image, from its global noise coordinate."""
        low, high = self.interval
        inside = (low <= coordinate) & (coordinate <= high)
        return torch.where(inside, self.scale, 1.0).float()


def guide(
    scales: Float[Tensor, " b"], conditional: Callable[[], Tensor], unconditional: Callable[[], Tensor]
) -> Float[Tensor, "b ..."]:
    """Combines the two predictions; one that no image needs is not made.

    Args:
        scales: One for each image.
        conditional: Predicts with the latents.
        unconditional: Predicts without.
    """
    present = set(scales.tolist())
    if present == {1.0}:
        return conditional()
    if present == {0.0}:
        return unconditional()
    found = conditional()
    return torch.lerp(unconditional(), found, expand_time(scales, found))  # exact at 0 and at 1


def evaluations_per_stage(
    guidance: GuidanceConfig, schedule: StageSchedule, steps: int | Sequence[int]
) -> tuple[int, ...]:
    """Network evaluations in each stage of a decode: two at a step that mixes or goes beyond, else one.

    Args:
        guidance: Of the decode.
        schedule: The ladder.
        steps: Steps per stage, one number for all stages or one for each.
    """
    counts = []
    for stage, count in zip(schedule.stages, steps_per_stage(schedule, steps), strict=True):
        coordinate = stage.coordinate(torch.tensor(local_times(count, stage.time_shift)[:-1]))
        counts.append(sum(1 if scale in (0, 1) else 2 for scale in guidance.scales(coordinate).tolist()))
    return tuple(counts)
