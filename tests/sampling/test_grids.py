"""Time grids: where a decode looks."""

from itertools import pairwise

import pytest
import torch

from stepladder.sampling.grids import steps_per_stage, time_grid, time_grids
from stepladder.sampling.stages import StageSchedule


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("shift", [1.0, 0.3, 0.1])
def test_steps_sum_to_one_and_none_is_degenerate(steps: int, shift: float) -> None:
    grid = time_grid(steps, shift)
    assert grid[0] == 1
    assert grid[-1] == 0
    lengths = [a - b for a, b in pairwise(grid)]
    assert sum(lengths) == pytest.approx(1)
    assert min(lengths) > 0.9 * shift / steps
    if shift == 1:
        assert min(lengths) == pytest.approx(1 / steps)


def test_half_of_the_steps_lie_where_noise_meets_the_residual() -> None:
    schedule = StageSchedule.from_ends([0.1, 0.06, 0.0], residuals=[0.05, 0.09, 0.02])
    coarse, middle, fine = schedule.stages
    grids = time_grids(schedule, 2)
    for stage, level in ((coarse, 0.2), (fine, 0.02)):  # twice the end; the residual
        half = torch.tensor([grids[stage.index][1]])
        assert stage.noise_level(half).item() == pytest.approx(level)
    assert middle.time_shift == pytest.approx(0.97, abs=0.01)
    assert StageSchedule.uniform(1).stages[0].time_shift == 1


def test_each_stage_may_take_its_own_number_of_steps() -> None:
    schedule = StageSchedule.uniform(3)
    assert [len(grid) - 1 for grid in time_grids(schedule, (3, 2, 1))] == [3, 2, 1]
    assert time_grids(schedule, (3, 2, 1))[0] == pytest.approx([1, 2 / 3, 1 / 3, 0])


def test_wrong_steps_are_refused() -> None:
    schedule = StageSchedule.uniform(3)
    with pytest.raises(ValueError, match="Steps per stage 0 is outside 1 to 10,000"):
        steps_per_stage(schedule, 0)
    with pytest.raises(ValueError, match="2 numbers of steps for 3 stages"):
        steps_per_stage(schedule, (1, 2))
