"""The one loop that decodes, on every ladder.

    x <- noise at the coarsest scale
    for each stage:    jump, if it is not the first;    go through the stage

A stage takes steps on a grid of local times: Euler steps x <- x + (u' - u) w(x, u), with the velocity w that the clean
image of a denoiser implies, or another kind (`steps`). Full resolution is a ladder with K = 1; one step per scale is
one step in each stage; distillation runs the steps of a teacher and of a student in the same loop.

Each stage passes two things to the next: the noisy state, through the jump, and the last result of its denoiser.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from stepladder.sampling.denoiser import Denoised, Denoiser
from stepladder.sampling.randomness import Generators, NoiseSource, normal
from stepladder.sampling.scales import jump
from stepladder.sampling.stages import Stage, StageSchedule
from stepladder.sampling.steps import EULER, SamplerConfig, Span, step, textured

__all__ = ["StageEnd", "ThroughStage", "integrate", "run_stages", "sample"]


@dataclass(frozen=True, slots=True)
class StageEnd:
    """The end of one stage."""

    stage: Stage
    denoised: Denoised
    """What the last evaluation returned."""
    x: Float[Tensor, "b c h w"]
    """The state at noise level `stage.t_end`, from which the next jump starts."""

    @property
    def clean(self) -> Float[Tensor, "b c h w"]:
        """The image at this scale; at the last stage, the decoded image."""
        return self.denoised.clean

    def detach(self) -> "StageEnd":
        """The same without gradients."""
        return StageEnd(self.stage, self.denoised.detach(), self.x.detach())


ThroughStage: TypeAlias = Callable[[Stage, Tensor, Denoised | None], StageEnd]
"""Runs a stage: (stage, x at its start, result of the stage before) -> its end."""


def sample(
    denoiser: Denoiser,
    schedule: StageSchedule,
    *,
    size: tuple[int, int],
    generators: Sequence[torch.Generator] | NoiseSource,
    grids: Sequence[Sequence[float]],
    sampler: SamplerConfig = EULER,
    batch: int | None = None,
    channels: int = 3,
) -> Iterator[StageEnd]:
    """Draws images stage by stage, and yields the end of each, coarse first.

    Args:
        denoiser: Evaluated once for each step of the grids.
        schedule: The ladder.
        size: (H, W) of the images; multiples of `schedule.multiple`.
        generators: One for each image, on the device where the images shall be; or another source of noise.
        grids: Local times of each stage, from 1 to 0 (`grids.time_grids`).
        sampler: How steps are taken; the grids include its shift.
        batch: Number of images; that of the generators by default, and needed with another source.
        channels: Image channels.

    Returns:
        The ends; the last one holds the images, of shape (B, C, H, W), not clamped.

    Raises:
        ValueError: If the size or the number of grids does not fit the ladder.
    """
    if len(grids) != schedule.num_stages:
        raise ValueError(f"{len(grids)} time grids for {schedule.num_stages} stages. Pass one for each stage.")
    if batch is None:
        assert isinstance(generators, Sequence), "a source of noise does not say how many images there are"
        batch = len(generators)
    through = [
        partial(integrate, denoiser=denoiser, grid=grid, sampler=sampler, generators=generators) for grid in grids
    ]
    return run_stages(through, schedule, shape=(batch, channels, *size), generators=generators)


def run_stages(
    through: Sequence[ThroughStage], schedule: StageSchedule, *, shape: Sequence[int], generators: Generators
) -> Iterator[StageEnd]:
    """The loop over the stages of a ladder: noise, then each stage from the end of the jump.

    Args:
        through: Runs a stage.
        schedule: The ladder.
        shape: (B, C, H, W) of the images.
        generators: One for the batch, or one for each image.

    Raises:
        ValueError: If the size does not fit the ladder.
    """
    b, c, h, w = shape
    multiple = schedule.multiple
    if h % multiple or w % multiple:
        raise ValueError(f"Size {(h, w)} does not fit {schedule.num_stages} stages. Use multiples of {multiple}.")
    x = normal((b, c, h // multiple, w // multiple), generators)
    previous: Denoised | None = None
    for stage in schedule.stages:
        if stage.index:
            t_end = schedule.stages[stage.index - 1].t_end
            x = jump(x, t_end=t_end, gamma=schedule.gamma, generators=generators)
        end = through[stage.index](stage, x, previous)
        x, previous = end.x, end.denoised
        yield end
        del end  # a state of which nothing is needed any more is not kept: it has the size of the image


def integrate(
    stage: Stage,
    x: Float[Tensor, "b c h w"],
    previous: Denoised | None,
    *,
    denoiser: Denoiser,
    grid: Sequence[float],
    start: Float[Tensor, " b"] | None = None,
    sampler: SamplerConfig = EULER,
    generators: Generators | None = None,
) -> StageEnd:
    """Runs a stage step by step.

    The last step of the last stage ends where there is no noise: x - u w is then the clean estimate itself.

    Args:
        stage: Which stage.
        x: The state at its start.
        previous: Result of the stage before.
        denoiser: Evaluated once for each step, or twice.
        grid: Local times from 1 to 0.
        start: Local time at which each image starts, by which its grid is scaled; 1 by default.
        sampler: How steps are taken.
        generators: One for each image, for samplers that draw fresh noise.
    """
    start = torch.ones(x.shape[0], device=x.device) if start is None else start
    first: Denoised | None = None
    denoised: Denoised | None = None
    evaluate = partial(denoiser, stage=stage, previous=previous)
    for share, next_share in pairwise(grid):
        denoised = evaluate(x, share * start)
        first = first or denoised
        if next_share == 0 and stage.t_end == 0:
            x = denoised.clean
        else:
            span = Span(stage, share * start, next_share * start, (next_share - share) * start)
            x, denoised = step(sampler.kind, x, denoised, span, evaluate, generators)
    assert first is not None and denoised is not None, "a grid has at least one step"
    if sampler.texture < 1 and denoised is not first:
        x, denoised = textured(first, denoised, x, stage, sampler.texture)
    return StageEnd(stage=stage, denoised=denoised, x=x)
