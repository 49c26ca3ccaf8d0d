"""Denoisers in closed form, and decodes in one line."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stepladder.sampling.denoiser import Denoised, Denoiser
from stepladder.sampling.grids import time_grids
from stepladder.sampling.randomness import generators
from stepladder.sampling.sampler import sample
from stepladder.sampling.scales import down
from stepladder.sampling.stages import Stage, StageSchedule


class Exact:
    """Knows the image, up to an offset; notes what it was shown."""

    def __init__(self, images: Tensor, offset: float = 0.0) -> None:
        self.images = images
        self.offset = torch.tensor(offset, requires_grad=True)
        self.shown: list[tuple[int, Tensor, Tensor]] = []
        """Stage, local times and noisy image of each call."""
        self.previous: list[Tensor | None] = []
        """The clean image of the stage before, of each call."""

    def __call__(self, x: Tensor, u: Tensor, stage: Stage, previous: Denoised | None) -> Denoised:
        self.shown.append((stage.index, u, x.detach()))
        self.previous.append(None if previous is None else previous.clean)
        return Denoised(down(self.images, stage.downscale) + self.offset)


def pointwise(function: Callable[[Tensor, Tensor], Tensor]) -> Denoiser:
    """A denoiser that acts on each value of x alone, given (x, u) with u as (B, 1, 1, 1)."""

    def denoise(x: Tensor, u: Tensor, stage: Stage, previous: Denoised | None) -> Denoised:
        return Denoised(function(x, u[:, None, None, None]))

    return denoise


def decoded(
    denoiser: Denoiser,
    schedule: StageSchedule,
    *,
    size: tuple[int, int],
    seeds: Sequence[int],
    steps: int | Sequence[int],
) -> Tensor:
    """The images that a decode ends with."""
    *_, last = sample(denoiser, schedule, size=size, generators=generators(seeds), grids=time_grids(schedule, steps))
    return last.x
