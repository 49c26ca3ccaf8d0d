"""Time grids: the local times at which a decode evaluates its network.

A grid of N steps is 1 = u_0 > u_1 > ... > u_N = 0. Equal steps are u_i = 1 - i/N. A shift moves them,

    u <- shift u / (1 + (shift - 1) u),

towards low noise where it is below 1. By default each stage takes the shift of its residual (`Stage.time_shift`), which
is 1, equal steps, if that was not measured. A decode may use others.

Reference: Scaling Rectified Flow Transformers (Esser et al., 2024), section 5.3.2, https://arxiv.org/abs/2403.03206
"""

from collections.abc import Sequence

from stepladder.bounds import MAX_STEPS
from stepladder.configs import check_number
from stepladder.sampling.stages import StageSchedule

__all__ = ["steps_per_stage", "time_grid", "time_grids"]


def time_grid(steps: int, shift: float = 1.0) -> list[float]:
    """The local times of a stage, from 1 to 0, both included."""
    inner = [1 - i / steps for i in range(1, steps)]
    return [1.0, *(shift * u / (1 + (shift - 1) * u) for u in inner), 0.0]


def time_grids(
    schedule: StageSchedule, steps: int | Sequence[int], shifts: Sequence[float] | None = None
) -> list[list[float]]:
    """The local times of every stage.

    Args:
        schedule: The ladder.
        steps: Steps per stage, one number for all stages or one for each; at least 1.
        shifts: One for each stage; None for those of the residuals.

    Raises:
        ValueError: If the steps do not fit the ladder.
    """
    counts = steps_per_stage(schedule, steps)
    shifts = [stage.time_shift for stage in schedule.stages] if shifts is None else shifts
    return [time_grid(count, shift) for count, shift in zip(counts, shifts, strict=True)]


def steps_per_stage(schedule: StageSchedule, steps: int | Sequence[int]) -> tuple[int, ...]:
    """Steps for each stage from one number for all, or one for each.

    Raises:
        ValueError: If a number is not whole or outside 1 to `MAX_STEPS`, or there are not as many as stages.
    """
    if isinstance(steps, float | str):
        raise ValueError(f"Steps per stage are {steps!r}. Pass a whole number, or one for each stage.")
    counts = (steps,) * schedule.num_stages if isinstance(steps, int) else tuple(steps)
    if len(counts) != schedule.num_stages:
        raise ValueError(f"{len(counts)} numbers of steps for {schedule.num_stages} stages. Pass one for each stage.")
    for count in (min(counts), max(counts)):
        check_number(count, 1, MAX_STEPS, name="Steps per stage", usual="1 to 64")
    return counts
