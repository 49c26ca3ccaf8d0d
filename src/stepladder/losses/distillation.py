"""Distillation of a many-step teacher to one network evaluation per scale.

The student takes each stage in one step, from local time 1 to 0. What it is taught at a stage comes from the teacher in
N > 1 steps, by one of two recipes.

    regress        Both start from the same state (same noise, same jump noise); the student's end point is regressed on
                   the teacher's:  |x_end - x_end'|^2 / (1-e)^2.  The next stage starts from where the teacher ended or,
                   unrolled, from where the student ended, as in decoding.

    adversarial    The student climbs the whole ladder. At each stage its clean image X is noised again, to a random
                   local time u; the teacher, told that u, goes on from there to its own X':  c(u) |X - X'|^2 with
                   c(u) = 1 / (1+u).  The teacher thus says where an image like this one should be more likely, and a
                   discriminator on the last image (`adversarial`) says what is still missing.

In the second, gradients flow through the whole climb, so a coarse stage also learns what serves the finer ones.

Reference: SSDD (Vallaeys et al., 2025), https://arxiv.org/abs/2510.04961, for the first, at one scale; Adversarial
Diffusion Distillation (Sauer et al., 2023), https://arxiv.org/abs/2311.17042, for the second, applied to every scale in
arXiv 2603.19570.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stepladder.errors import ConfigError
from stepladder.randomness import normal, uniform
from stepladder.samplers import Denoiser, enter, walk
from stepladder.stages import StageSchedule, path

__all__ = ["Climb", "check_teacher_steps", "renoised_climb", "shared_start_climb"]


@dataclass(frozen=True, slots=True)
class Climb:
    """A student's way up the ladder, beside its teacher's word on it."""

    errors: tuple[Float[Tensor, ""], ...]
    """Distance to the teacher at each stage, coarse first."""
    image: Float[Tensor, "b c H W"]
    """The student's image at full resolution."""


def shared_start_climb(
    student: Denoiser,
    teacher: Denoiser,
    schedule: StageSchedule,
    *,
    shape: Sequence[int],
    generator: torch.Generator,
    teacher_steps: int,
    unrolled: bool,
) -> Climb:
    """The recipe `regress`.

    Args:
        student: Called once for each stage, with gradients.
        teacher: Called `teacher_steps` times for each stage, without.
        schedule: The ladder of both.
        shape: (B, C, H, W) of the images.
        generator: Of all noise, on the device of the images.
        teacher_steps: More than 1.
        unrolled: Whether a stage starts from where the student ended the one before, instead of the teacher.

    Raises:
        ConfigError: If the teacher has one step.
    """
    check_teacher_steps(teacher_steps)
    b, c, h, w = shape
    x = normal((b, c, h // schedule.multiple, w // schedule.multiple), generator)
    start = torch.ones(b, device=x.device)
    below = None
    errors = []
    for stage in schedule.stages:
        x = enter(x, stage, schedule, generator)
        with torch.no_grad():
            wanted = walk(teacher, x, start, stage, below, teacher_steps)
        found = walk(student, x, start, stage, below, 1)
        errors.append((found.x - wanted.x).square().mean() / (1 - stage.t_end) ** 2)
        left = found if unrolled else wanted
        x, below = left.x.detach(), left.clean.detach()
    return Climb(errors=tuple(errors), image=found.clean)


def renoised_climb(
    student: Denoiser,
    teacher: Denoiser,
    schedule: StageSchedule,
    *,
    shape: Sequence[int],
    generator: torch.Generator,
    teacher_steps: int,
) -> Climb:
    """The recipe `adversarial`, but for its discriminator.

    Args:
        student: Called once for each stage, with gradients through the whole climb.
        teacher: Called `teacher_steps` times for each stage, without; told the noise level that it gets.
        schedule: The ladder of both.
        shape: (B, C, H, W) of the images.
        generator: Of all noise and times, on the device of the images.
        teacher_steps: More than 1.

    Raises:
        ConfigError: If the teacher has one step.
    """
    check_teacher_steps(teacher_steps)
    b, c, h, w = shape
    x = normal((b, c, h // schedule.multiple, w // schedule.multiple), generator)
    start = torch.ones(b, device=x.device)
    below = None
    errors = []
    for stage in schedule.stages:
        x = enter(x, stage, schedule, generator)
        found = walk(student, x, start, stage, below, 1)
        u = 1 - uniform(b, generator)
        with torch.no_grad():
            point = path(found.clean, normal(x.shape, generator), u, stage)
            wanted = walk(teacher, point.x, u, stage, None if below is None else below.detach(), teacher_steps)
        errors.append(((found.clean - wanted.clean).square().mean(dim=(1, 2, 3)) / (1 + u)).mean())
        x, below = found.x, found.clean
    return Climb(errors=tuple(errors), image=found.clean)


def check_teacher_steps(steps: int) -> None:
    """A teacher of one step knows no more than its student.

    Raises:
        ConfigError: If there are fewer than 2.
    """
    if steps < 2:
        raise ConfigError(
            f"Teacher steps {steps} is less than 2. In one step a teacher knows no more than the student that starts "
            "from it. Pass 2 or more; usual values: 4 to 16."
        )
