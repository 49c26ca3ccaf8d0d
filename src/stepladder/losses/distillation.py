"""Distillation of a many-step teacher to one network evaluation per scale.

The student takes each stage in one step, from local time 1 to 0. At each stage, the teacher takes N > 1 steps. There
are two recipes:

    regress        Both start from the same state (same noise, same jump noise); the student's end point is regressed on
                   the teacher's:  |x_end - x_end'|^2 / (1-e)^2.  The next stage starts from where the teacher ended or,
                   unrolled, from where the student ended, as in decoding.

    adversarial    The student decodes all stages. At each stage its clean image X is noised again, to a random
                   local time u; the teacher, told that u, goes on from there to its own X':  c(u) |X - X'|^2 with
                   c(u) = 1 / (1+u). The teacher thus moves the image to a likelier one, and a discriminator on the last
                   image, or on that of every stage (`adversarial`), corrects what remains.

In the second, gradients flow through the whole rollout, so a coarse stage also learns to serve the finer ones.

Both networks see the same clean image of the stage before, but each sees its own features, since it was not trained on
those of the other.

Reference: SSDD (Vallaeys et al., 2025), https://arxiv.org/abs/2510.04961, for the first, at one scale; Adversarial
Diffusion Distillation (Sauer et al., 2023), https://arxiv.org/abs/2311.17042, for the second, applied to every scale in
arXiv 2603.19570.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stepladder.bounds import MAX_STEPS
from stepladder.configs import check_number
from stepladder.errors import ConfigError
from stepladder.sampling.denoiser import Denoised, Denoiser
from stepladder.sampling.grids import time_grid
from stepladder.sampling.path import path
from stepladder.sampling.randomness import normal, uniform
from stepladder.sampling.sampler import StageEnd, integrate, run_stages
from stepladder.sampling.stages import Stage, StageSchedule

__all__ = ["Rollout", "check_teacher_steps", "renoised_rollout", "shared_start_rollout"]

_ONE_STEP = (1.0, 0.0)


@dataclass(frozen=True, slots=True)
class Rollout:
    """A decode of the student, and its distance to the teacher."""

    errors: tuple[Float[Tensor, ""], ...]
    """Distance to the teacher at each stage, coarse first."""
    images: tuple[Float[Tensor, "b c _ _"], ...]
    """The student's clean image of each stage, coarse first, each at its own side."""

    @property
    def image(self) -> Float[Tensor, "b c H W"]:
        """The student's image at full resolution."""
        return self.images[-1]


def shared_start_rollout(
    student: Denoiser,
    teacher: Denoiser,
    schedule: StageSchedule,
    *,
    shape: Sequence[int],
    generator: torch.Generator,
    teacher_steps: int,
    unrolled: bool,
) -> Rollout:
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
    errors: list[Tensor] = []
    cleans: list[Tensor] = []
    found: StageEnd | None = None
    wanted: StageEnd | None = None

    def through(stage: Stage, x: Tensor, previous: Denoised | None) -> StageEnd:
        nonlocal found, wanted
        with torch.no_grad():
            grid = time_grid(teacher_steps, stage.time_shift)
            wanted = integrate(stage, x, _with_features_of(wanted, previous), denoiser=teacher, grid=grid)
        found = integrate(stage, x, _with_features_of(found, previous), denoiser=student, grid=_ONE_STEP)
        cleans.append(found.clean)
        errors.append((found.x - wanted.x).square().mean() / (1 - stage.t_end) ** 2)
        return (found if unrolled else wanted).detach()

    for _ in run_stages([through] * schedule.num_stages, schedule, shape=shape, generators=generator):
        pass
    return Rollout(errors=tuple(errors), images=tuple(cleans))


def renoised_rollout(
    student: Denoiser,
    teacher: Denoiser,
    schedule: StageSchedule,
    *,
    shape: Sequence[int],
    generator: torch.Generator,
    teacher_steps: int,
) -> Rollout:
    """The recipe `adversarial`, without its discriminator.

    Args:
        student: Called once for each stage, with gradients through the whole rollout.
        teacher: Called `teacher_steps` times for each stage, without gradients; told the actual noise level.
        schedule: The ladder of both.
        shape: (B, C, H, W) of the images.
        generator: Of all noise and times, on the device of the images.
        teacher_steps: More than 1.

    Raises:
        ConfigError: If the teacher has one step.
    """
    check_teacher_steps(teacher_steps)
    errors: list[Tensor] = []
    cleans: list[Tensor] = []
    wanted: StageEnd | None = None

    def through(stage: Stage, x: Tensor, previous: Denoised | None) -> StageEnd:
        nonlocal wanted
        found = integrate(stage, x, previous, denoiser=student, grid=_ONE_STEP)
        cleans.append(found.clean)
        u = 1 - uniform(x.shape[0], generator)
        with torch.no_grad():
            point = path(found.clean, normal(x.shape, generator), u, stage)
            grid = time_grid(teacher_steps, stage.time_shift)
            wanted = integrate(
                stage, point.x, _with_features_of(wanted, previous), denoiser=teacher, grid=grid, start=u
            )
        errors.append(((found.clean - wanted.clean).square().mean(dim=(1, 2, 3)) / (1 + u)).mean())
        return found

    for _ in run_stages([through] * schedule.num_stages, schedule, shape=shape, generators=generator):
        pass
    return Rollout(errors=tuple(errors), images=tuple(cleans))


def check_teacher_steps(steps: int) -> None:
    """Checks that the teacher takes several steps; with one it could not teach a one-step student.

    Raises:
        ConfigError: If there are fewer than 2, or more than can be listed.
    """
    if steps < 2:
        raise ConfigError(
            f"Teacher steps {steps} is less than 2. In one step a teacher knows no more than the student that starts "
            "from it. Pass 2 or more; usual values: 4 to 16."
        )
    check_number(steps, 2, MAX_STEPS, name="Teacher steps", usual="4 to 16")


def _with_features_of(end: StageEnd | None, previous: Denoised | None) -> Denoised | None:
    """The previous clean image with a network's own features, detached."""
    if end is None or previous is None:
        return None
    return Denoised(previous.clean, end.denoised.features).detach()
