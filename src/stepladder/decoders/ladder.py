"""The configuration of a ladder."""

from dataclasses import dataclass

from stepladder.configs import check_number
from stepladder.errors import ConfigError
from stepladder.sampling.scales import MAX_GAMMA
from stepladder.sampling.stages import StageSchedule

__all__ = ["LadderConfig"]


@dataclass(frozen=True, kw_only=True)
class LadderConfig:
    """The ladder of scales. Sides are halved by the mean of 2x2 pixels, which is antialiased."""

    num_stages: int = 3
    """K; 1 is the ordinary full-resolution diffusion decoder."""
    ends: list[float] | None = None
    """Noise level at the end of each stage, falling to 0, as `stepladder schedule` proposes them; None for equal
    steps."""
    residuals: list[float] | None = None
    """Standard deviation that the latent leaves open at the scale of each stage, as `stepladder schedule` measures it:
    where stages draw, and the scale of what their network adds; None if it was not measured."""
    gamma: float = MAX_GAMMA
    """In-block correlation of the noise that a jump adds, in (0, 1/3]."""

    def __post_init__(self) -> None:
        check_number(self.num_stages, 1, 8, name="Number of stages", usual="1 to 4")
        if not 0 < self.gamma <= MAX_GAMMA:
            raise ConfigError(
                f"Block correlation gamma {self.gamma} is outside (0, 1/3]. Leave it at its default, 1/3."
            )
        for name, values in (("ends", self.ends), ("residuals", self.residuals)):
            if values is not None and len(values) != self.num_stages:
                raise ConfigError(
                    f"Ladder {name} {list(values)} are not one number for each of {self.num_stages} stages. Set both "
                    f"ladder.num_stages and ladder.{name}."
                )
        try:
            self.schedule()
        except ValueError as error:
            raise ConfigError(f"Ladder: {error}") from error

    def schedule(self) -> StageSchedule:
        """The stages that these settings describe."""
        uniform = StageSchedule.uniform(self.num_stages, self.gamma)
        ends = self.ends or [stage.t_end for stage in uniform.stages]
        return StageSchedule.from_ends(ends, gamma=self.gamma, residuals=self.residuals)
