"""Classifier-free guidance on the latent: a denoiser from two.

    clean = unconditional + scale (conditional - unconditional)

    scale 0      the prediction without a latent
    scale 1      the prediction with one: no guidance, and no second evaluation
    between      a mixture of both
    beyond 1     further from the first than the second is

Scales have this meaning everywhere. (Ho & Salimans write w for our scale - 1.) "Without a latent" means with a learned
null latent, which replaces some latents in training (`loss.context_dropout`).

At given x and u the clean image and the velocity are affine functions of each other, and the weights of the two, 1 -
scale and scale, sum to 1. So it makes no difference which is combined.

Interval. Guidance helps at middle noise levels. At high levels it does harm, because it reduces diversity; at low ones
it changes little. Outside `interval`, on the global noise coordinate, the scale is therefore 1.

The two evaluations run one after the other instead of as a doubled batch. They need no more memory than a decode
without guidance, a compiled network sees no new shapes, and the prediction with a latent is bit for bit that of a
decode without guidance. A batch of images fills a device anyway.

References: Classifier-Free Diffusion Guidance (Ho & Salimans, 2022), https://arxiv.org/abs/2207.12598; Applying
Guidance in a Limited Interval Improves Sample and Distribution Quality in Diffusion Models (Kynkaanniemi et al., 2024),
https://arxiv.org/abs/2404.07724
"""

import math
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stepladder.errors import ConfigError
from stepladder.sampling.denoiser import Denoised, Denoiser
from stepladder.sampling.flow import expand_time
from stepladder.sampling.stages import Stage, StageSchedule

__all__ = ["GuidanceConfig", "evaluations_per_stage", "guide", "guided"]


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
        """Whether it has no effect."""
        return self.scale == 1

    @property
    def is_everywhere(self) -> bool:
        """Whether the scale holds at all noise levels."""
        return self.interval == (0.0, 1.0)

    def scales(self, coordinate: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The scale of each image, from its global noise coordinate."""
        low, high = self.interval
        inside = (low <= coordinate) & (coordinate <= high)
        return torch.where(inside, self.scale, 1.0).float()


def guided(conditional: Denoiser, unconditional: Denoiser, config: GuidanceConfig) -> Denoiser:
    """The guided denoiser from two others; an evaluation that no image of a batch needs is skipped.

    Args:
        conditional: Bound to the latents.
        unconditional: Bound to the null latent.
        config: How they are combined.
    """
    if config.is_off:
        return conditional

    def denoise(x: Tensor, u: Tensor, stage: Stage, previous: Denoised | None) -> Denoised:
        handed = (None, None) if previous is None else _split(previous)
        found: list[Denoised] = []

        def evaluate(denoiser: Denoiser, handed_on: Denoised | None) -> Tensor:
            found.append(denoiser(x, u, stage, handed_on))
            return found[-1].clean

        clean = guide(
            config.scales(stage.coordinate(u)),
            lambda: evaluate(conditional, handed[0]),
            lambda: evaluate(unconditional, handed[1]),
            present={config.scale} if config.is_everywhere else None,
        )
        return Denoised(clean, found[0].features + found[-1].features)

    return denoise


def guide(
    scales: Float[Tensor, " b"],
    conditional: Callable[[], Tensor],
    unconditional: Callable[[], Tensor],
    *,
    present: AbstractSet[float] | None = None,
) -> Float[Tensor, "b ..."]:
    """Combines two predictions; one that no item of the batch needs is skipped.

    Args:
        scales: One for each item.
        conditional: Predicts with the condition.
        unconditional: Predicts without.
        present: The scales that occur; without them, the host waits for the device to read them.
    """
    present = set(scales.tolist()) if present is None else present
    if present == {1.0}:
        return conditional()
    if present == {0.0}:
        return unconditional()
    found = conditional()
    return torch.lerp(unconditional(), found, expand_time(scales, found))  # exact at 0 and at 1


def _split(previous: Denoised) -> tuple[Denoised, Denoised]:
    """The previous result for each of the two denoisers: the guided clean image, and its own features."""
    half = len(previous.features) // 2
    return Denoised(previous.clean, previous.features[:half]), Denoised(previous.clean, previous.features[half:])


def evaluations_per_stage(
    config: GuidanceConfig, schedule: StageSchedule, times: Sequence[Sequence[float]]
) -> tuple[int, ...]:
    """Network evaluations in each stage of a decode: two at a step with a scale other than 0 and 1, else one.

    Args:
        config: Of the decode.
        schedule: The ladder.
        times: Local times of each stage at which its denoiser is evaluated, from `steps.evaluation_times`.
    """
    counts = []
    for stage, asked in zip(schedule.stages, times, strict=True):
        scales = config.scales(stage.coordinate(torch.tensor(asked)))
        counts.append(sum(1 if scale in (0, 1) else 2 for scale in scales.tolist()))
    return tuple(counts)
