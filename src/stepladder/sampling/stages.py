"""The ladder: stages, and their intervals of noise levels.

Stage i runs at side H / 2^(K-1-i), from the noise level after the jump (`scales`) down to e_i. Any ends e_0 > e_1 > ...
> e_(K-1) = 0 make a ladder; uniform ones are e_i = 1 - (i+1)/K. A ladder with K = 1 goes from 1 to 0 at full
resolution: the ordinary diffusion decoder.

Choosing the ends. A latent leaves open a residual of standard deviation r_i at the scale of stage i. A state with noise
far above r_i adds nothing to the latent, and one with noise far below leaves nothing to draw: a stage works at levels
from about 3 r_i down to below r_i. `proposed_ends` turns measured residuals into ends.

Reference: Pyramidal Flow Matching (Jin et al., 2024), section 3.2, https://arxiv.org/abs/2410.05954
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor

from stepladder.sampling.scales import MAX_GAMMA, check_gamma, renoised_level

__all__ = ["Stage", "StageSchedule", "check_ends", "proposed_ends"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One noise interval at one scale.

    Time runs from `t_start` (noisier) down to `t_end`; both lie in [0, 1].
    """

    index: int
    """Position on the ladder; 0 runs first and is the coarsest."""
    downscale: int
    """Image side over the side of this stage; a power of two, 1 at the last stage."""
    t_start: float
    """Noise level at local time u = 1, after the jump."""
    t_end: float
    """Noise level at local time u = 0."""
    coordinate_start: float
    """Global noise coordinate at u = 1; the coordinates of all stages tile [0, 1] without overlap."""
    coordinate_end: float
    """Global noise coordinate at u = 0."""
    residual: float | None = None
    """Standard deviation of the residual of the latent at this scale, on [-1, 1]; None if it was not measured."""

    @property
    def time_shift(self) -> float:
        """How much denser grids of local times are at low noise: u <- shift u / (1 + (shift - 1) u).

        Half of the steps lie below the noise level of the residual, or below twice `t_end` if that is higher. 1, equal
        steps, if the middle of the stage lies below that already or the residual is unknown.
        """
        if self.residual is None:
            return 1.0
        middle = (max(self.residual, 2 * self.t_end) - self.t_end) / (self.t_start - self.t_end)
        return middle / (1 - middle) if middle < 0.5 else 1.0

    def noise_level(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Coefficient of the noise in x_u: (1-u) e + u s."""
        return (1 - u) * self.t_end + u * self.t_start

    def coordinate(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The global noise coordinate in [0, 1], continuous and monotone along a whole decode."""
        return (1 - u) * self.coordinate_end + u * self.coordinate_start


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSchedule:
    """The stages of a ladder in the order in which they run, and the correlation of its block noise."""

    stages: tuple[Stage, ...]
    gamma: float

    @classmethod
    def uniform(cls, num_stages: int = 3, gamma: float = MAX_GAMMA) -> "StageSchedule":
        """K stages of equal width: K = 3 starts at 1, 0.8, 0.5 and ends at 2/3, 1/3, 0; K = 1 goes from 1 to 0.

        Raises:
            ValueError: If `num_stages` is less than 1 or `gamma` lies outside (0, 1/3].
        """
        if num_stages < 1:
            raise ValueError(f"Number of stages {num_stages} is less than 1. Pass 1 (no ladder) or more.")
        return cls.from_ends([1 - (i + 1) / num_stages for i in range(num_stages - 1)] + [0.0], gamma=gamma)

    @classmethod
    def from_ends(
        cls, ends: Sequence[float], *, gamma: float = MAX_GAMMA, residuals: Sequence[float] | None = None
    ) -> "StageSchedule":
        """Stages that end at given noise levels; each but the first starts at the end of the jump.

        Args:
            ends: Noise levels in [0, 1), falling, the last one 0; one for each stage.
            gamma: In-block correlation of the noise that a jump adds.
            residuals: Standard deviations of the residual of the latent at the scale of each stage, if measured.

        Raises:
            ValueError: If the ends do not fall to 0, there are not as many residuals, one of them is not positive, or
                `gamma` lies outside (0, 1/3].
        """
        check_gamma(gamma)
        check_ends(ends)
        if residuals is not None and (len(residuals) != len(ends) or not all(0 < r < math.inf for r in residuals)):
            raise ValueError(
                f"Residuals {list(residuals)} do not fit {len(ends)} stages. Pass a positive number for each, or none."
            )
        count, stages = len(ends), []
        for i, end in enumerate(ends):
            stages.append(
                Stage(
                    index=i,
                    downscale=2 ** (count - 1 - i),
                    t_start=renoised_level(ends[i - 1], gamma) if i else 1.0,
                    t_end=float(end),
                    coordinate_start=1 - i / count,
                    coordinate_end=1 - (i + 1) / count,
                    residual=None if residuals is None else residuals[i],
                )
            )
        return cls(stages=tuple(stages), gamma=gamma)

    @property
    def num_stages(self) -> int:
        """Number of stages, K."""
        return len(self.stages)

    @property
    def multiple(self) -> int:
        """Image sides must be multiples of this for every stage to have whole pixels."""
        return self.stages[0].downscale


def check_ends(ends: Sequence[float]) -> None:
    """Checks that noise levels can be the ends of stages.

    Raises:
        ValueError: If they do not fall from below 1 to 0.
    """
    if not ends or not ends[0] < 1 or ends[-1] != 0 or not all(a > b for a, b in pairwise(ends)):
        raise ValueError(
            f"Stage ends {list(ends)} do not fall from below 1 to 0. Pass one noise level for each stage, the last one "
            "0, for example [0.1, 0.06, 0]."
        )


def proposed_ends(residuals: Sequence[float]) -> list[float]:
    """Ends of stages, from the residual of the latent at the scale of each.

    The stage after an end e starts at about 2 e, which should be above 3 r of its scale; the stage before should end
    below r of its own. The geometric mean of both is e_i = (r_i 1.5 r_(i+1))^(1/2). Where these do not fall by a factor
    of at least 1.5, the nearest ends that do are taken (least squares in log e).

    Args:
        residuals: Coarse first, positive; one for each stage.
    """
    wanted = [math.log(math.sqrt(a * 1.5 * b)) for a, b in pairwise(residuals)]
    step = math.log(1.5)
    level = [w + i * step for i, w in enumerate(wanted)]  # must not rise: isotonic regression, in closed form
    count = range(len(level))
    falling = [
        min(max(sum(level[j : k + 1]) / (k + 1 - j) for k in count if k >= i) for j in count if j <= i) for i in count
    ]
    return [min(0.9 / 1.5**i, math.exp(value - i * step)) for i, value in enumerate(falling)] + [0.0]
