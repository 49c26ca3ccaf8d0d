"""One loop for all ladders.

For each stage: a jump (if it is not the first), then Euler steps x <- x + (u' - u) w(x, u) on a grid of local times
from 1 to 0. Full resolution is a ladder with K = 1; one step per scale is one step in each stage. All are this loop.

Each stage hands two things to the next: the noisy state, through the jump, and its clean estimate, as it is. The jump
hides most of what a stage found in noise; a denoiser may read it off the clean estimate instead, as cascaded diffusion
models do (Ho et al., 2021, https://arxiv.org/abs/2106.15282).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from stepladder.flow import expand_time
from stepladder.randomness import Generators, normal
from stepladder.stages import Stage, StageSchedule, jump

__all__ = [
    "Denoiser",
    "Prediction",
    "StageResult",
    "enter",
    "local_times",
    "sample",
    "sample_progressively",
    "steps_per_stage",
    "walk",
]


class Prediction:
    """What a denoiser says of a noisy image: the clean image and the velocity, each of which implies the other.

    Either may be given as a function, which is called when it is first asked for: the last step of a decode needs no
    velocity, and at full resolution an image that nobody needs costs time and memory.
    """

    __slots__ = ("_clean", "_velocity")

    def __init__(self, *, clean: Tensor | Callable[[], Tensor], velocity: Tensor | Callable[[], Tensor]) -> None:
        self._clean = clean
        self._velocity = velocity

    @property
    def clean(self) -> Float[Tensor, "b c h w"]:
        """Estimate of the clean image at the scale of the stage."""
        if not isinstance(self._clean, Tensor):
            self._clean = self._clean()
        return self._clean

    @property
    def velocity(self) -> Float[Tensor, "b c h w"]:
        """The velocity w = dx/du, in local time."""
        if not isinstance(self._velocity, Tensor):
            self._velocity = self._velocity()
        return self._velocity


class Denoiser(Protocol):
    """The network as the sampler calls it: everything else that it is told (latent, guidance) is bound before."""

    def __call__(
        self,
        x: Float[Tensor, "b c h w"],
        u: Float[Tensor, " b"],
        stage: Stage,
        below: Float[Tensor, "b c h//2 w//2"] | None,
    ) -> Prediction:
        """Looks at x_u of a stage at local times `u` in [0, 1], float32.

        `below` is the clean estimate with which the stage before ended, at half the side; None at the first stage.
        """
        ...


@dataclass(frozen=True, slots=True)
class StageResult:
    """The end of one stage."""

    stage: Stage
    clean: Float[Tensor, "b c h w"]
    """The image at this scale; at the last stage, the decoded image."""
    x: Float[Tensor, "b c h w"]
    """The state at noise level `stage.t_end`, from which the next jump goes on."""


def sample(
    denoiser: Denoiser,
    schedule: StageSchedule,
    *,
    size: tuple[int, int],
    generators: Sequence[torch.Generator],
    steps: int | Sequence[int],
    channels: int = 3,
) -> Float[Tensor, "b c h w"]:
    """Draws images by going up the ladder.

    Args:
        denoiser: Evaluated `sum(steps over the stages)` times.
        schedule: The ladder.
        size: (H, W) of the images; multiples of `schedule.multiple`.
        generators: One for each image, on the device where the images shall be.
        steps: Steps per stage, one number for all stages or one for each; at least 1.
        channels: Image channels.

    Returns:
        Shape (B, C, H, W), not clamped.

    Raises:
        ValueError: If the steps or the size do not fit the ladder.
    """
    *_, last = sample_progressively(
        denoiser, schedule, size=size, generators=generators, steps=steps, channels=channels
    )
    return last.x


def sample_progressively(
    denoiser: Denoiser,
    schedule: StageSchedule,
    *,
    size: tuple[int, int],
    generators: Sequence[torch.Generator],
    steps: int | Sequence[int],
    channels: int = 3,
) -> Iterator[StageResult]:
    """As `sample`, and yields the end of each stage, coarse first."""
    counts = steps_per_stage(schedule, steps)
    if size[0] % schedule.multiple or size[1] % schedule.multiple:
        raise ValueError(
            f"Size {size} does not fit {schedule.num_stages} stages. Use multiples of {schedule.multiple}."
        )
    h, w = size[0] // schedule.multiple, size[1] // schedule.multiple
    x = normal((len(generators), channels, h, w), generators)
    start = torch.ones(len(generators), device=x.device)
    below = None
    for stage, count in zip(schedule.stages, counts, strict=True):
        result = walk(denoiser, enter(x, stage, schedule, generators), start, stage, below, count)
        x, below = result.x, result.clean
        yield result


def enter(
    x: Float[Tensor, "b c h w"], stage: Stage, schedule: StageSchedule, generators: Generators
) -> Float[Tensor, "b c h2 w2"]:
    """The start of a stage from the end of the one before, by a jump; at the first stage, x as it is."""
    if stage.index == 0:
        return x
    before = schedule.stages[stage.index - 1]
    return jump(x, t_end=before.t_end, gamma=schedule.gamma, generators=generators)


def walk(
    denoiser: Denoiser,
    x: Float[Tensor, "b c h w"],
    u: Float[Tensor, " b"],
    stage: Stage,
    below: Float[Tensor, "b c h//2 w//2"] | None,
    steps: int,
) -> StageResult:
    """Goes through a stage from local times `u`, one for each image, to 0 in Euler steps.

    The last step of the last stage ends where there is no noise: x - u w is then the clean estimate itself.
    """
    clean = x
    for share, next_share in pairwise(local_times(steps, stage.time_shift)):
        prediction = denoiser(x, share * u, stage, below)
        clean = prediction.clean
        if next_share == 0 and stage.t_end == 0:
            x = clean
        else:
            x = (expand_time((next_share - share) * u, x) * prediction.velocity).add_(x)  # one copy less than a sum
    return StageResult(stage=stage, clean=clean, x=x)


def steps_per_stage(schedule: StageSchedule, steps: int | Sequence[int]) -> tuple[int, ...]:
    """Steps for each stage from one number for all, or one for each.

    Raises:
        ValueError: If a number is less than 1, or there are not as many as stages.
    """
    counts = (steps,) * schedule.num_stages if isinstance(steps, int) else tuple(steps)
    if len(counts) != schedule.num_stages:
        raise ValueError(f"{len(counts)} numbers of steps for {schedule.num_stages} stages. Pass one for each stage.")
    if min(counts) < 1:
        raise ValueError(f"Steps per stage {min(counts)} is less than 1. Pass 1 or more.")
    return counts


def local_times(steps: int, shift: float = 1.0) -> list[float]:
    """The grid 1 = u_0 > u_1 > ... > u_steps = 0: equal steps, shifted so that a `shift` below 1 is denser near 0."""
    equal = [1 - i / steps for i in range(steps)] + [0.0]
    return [shift * u / (1 + (shift - 1) * u) for u in equal]
