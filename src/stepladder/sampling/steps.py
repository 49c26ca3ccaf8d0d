"""How a step is taken: from x at local time u to x at u' < u, given a denoiser.

    euler       x + (u' - u) w(x, u)                                one evaluation, error of a stage ~ 1/N
    heun        x + (u' - u) (w(x, u) + w(x', u')) / 2              two evaluations, error ~ 1/N^2; x' is Euler's point
    ancestral   m(u', X) + t' (c n + (1 - c^2)^(1/2) z)             one evaluation, and fresh noise z

w is the velocity, and n the noise, that the clean image X implies; t and t' are the noise levels at u and u', and m(u,
X) is the part of X in x_u. Euler and Heun follow the one curve that leads from a noise to an image. Ancestral steps
replace part of the noise,

    c = t' (1 - t) / (t (1 - t'))

which at K = 1 is the posterior of x at u' given x at u and X, the DDPM step. Fresh noise corrects errors of earlier
steps, but adds errors of its own when steps are few.

The step to a noise level of 0 ends at the clean image, whatever the kind.

Texture. The first evaluation of a stage gives the mean of all images that fit the latent; the last one gives one of
them. Texture moves between the two, at every stage,

    X <- X_first + texture (X - X_first),    x <- x + (1 - e) (X' - X)

so that the next stage continues from the image that is shown. PSNR is best at 0; images look best in between.

References: Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022), section 3 (Heun),
https://arxiv.org/abs/2206.00364; Denoising Diffusion Probabilistic Models (Ho et al., 2020), equation 7,
https://arxiv.org/abs/2006.11239
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from stepladder.errors import ConfigError
from stepladder.sampling.denoiser import Denoised
from stepladder.sampling.flow import expand_time
from stepladder.sampling.path import noise_from_clean, path, velocity_from_clean
from stepladder.sampling.randomness import Generators, NoiseKind, normal
from stepladder.sampling.stages import Stage, StageSchedule

__all__ = ["EULER", "SamplerConfig", "SamplerKind", "Span", "evaluation_times", "find_sampler", "step", "textured"]

SamplerKind = Literal["euler", "heun", "ancestral"]

Evaluate: TypeAlias = Callable[[Tensor, Tensor], Denoised]
"""Evaluates the denoiser of a stage at (x, u)."""


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How a decode takes its steps."""

    kind: SamplerKind = "euler"
    """`euler`; `heun`, with two evaluations a step; or `ancestral`, which draws fresh noise in every step."""
    texture: float = 1.0
    """From 0, the mean, to 1, one of the images that fit. No effect where a stage takes one step."""
    shift: tuple[float, ...] | None = None
    """How much denser local times are at low noise, below 1 for denser: one number for all stages, or one for each.
    None for the shift of each stage's residual."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(SamplerKind):
            raise ConfigError(f"Sampler '{self.kind}' is unknown. Accepted: {', '.join(get_args(SamplerKind))}.")
        if not 0 <= self.texture <= 1:
            raise ConfigError(f"Texture {self.texture} is outside [0, 1]. Pass 1 for all of it, usually 0.5 to 1.")
        if self.shift is not None and not (self.shift and all(0 < shift <= 100 for shift in self.shift)):
            raise ConfigError(
                f"Time shift {list(self.shift)} is not positive numbers up to 100. Pass one for all stages, or one for "
                "each; 1 for equal steps."
            )

    def shifts(self, schedule: StageSchedule) -> tuple[float, ...]:
        """The time shift of each stage.

        Raises:
            ConfigError: If there is not one for each stage.
        """
        if self.shift is None:
            return tuple(stage.time_shift for stage in schedule.stages)
        if len(self.shift) not in (1, schedule.num_stages):
            raise ConfigError(
                f"{len(self.shift)} time shifts do not fit {schedule.num_stages} stages. Pass one for all stages, or "
                "one for each."
            )
        return self.shift if len(self.shift) > 1 else self.shift * schedule.num_stages

    def __str__(self) -> str:
        """Its settings other than the defaults: `heun, texture 0.75`; empty for plain Euler steps."""
        shift = f"shift {','.join(f'{value:g}' for value in self.shift)}" if self.shift else ""
        texture = f"texture {self.texture:g}" if self.texture < 1 else ""
        return ", ".join(filter(None, ("" if self.kind == "euler" else self.kind, texture, shift)))

    def as_dict(self) -> dict[str, Any]:
        """As in reports."""
        shift = None if self.shift is None else list(self.shift)
        return {"sampler": self.kind, "texture": self.texture, "shift": shift}


EULER = SamplerConfig()


def find_sampler(sampler: SamplerConfig | SamplerKind, noise: NoiseKind) -> SamplerConfig:
    """The sampler of a decode from its configuration or its kind alone.

    Raises:
        ConfigError: If there is no such kind, or it draws although the noise is zero.
    """
    found = sampler if isinstance(sampler, SamplerConfig) else SamplerConfig(kind=sampler)
    if noise == "zero" and found.kind == "ancestral":
        raise ConfigError("Noise 'zero' does not fit sampler 'ancestral', which draws in every step. Change one.")
    return found


def evaluation_times(stage: Stage, grid: Sequence[float], kind: SamplerKind) -> list[float]:
    """The local times at which a stage evaluates its denoiser, in order."""
    times = list(grid[:-1])
    if kind != "heun":
        return times
    ahead = [u for u in grid[1:] if u > 0 or stage.t_end > 0]
    return sorted(times + ahead, reverse=True)


@dataclass(frozen=True, slots=True)
class Span:
    """A step to take inside a stage; one number for each image."""

    stage: Stage
    u: Float[Tensor, " b"]
    """Local time at which it begins."""
    u_next: Float[Tensor, " b"]
    """Local time at which it ends, above noise level 0."""
    length: Float[Tensor, " b"]
    """u_next - u, below 0."""


def step(
    kind: SamplerKind,
    x: Float[Tensor, "b c h w"],
    found: Denoised,
    span: Span,
    evaluate: Evaluate,
    generators: Generators | None,
) -> tuple[Float[Tensor, "b c h w"], Denoised]:
    """Takes a step; returns the new state, and the result of the last evaluation.

    Args:
        kind: Of step.
        x: The state where it begins.
        found: Result of the denoiser there.
        span: Its local times.
        evaluate: The denoiser, for a further evaluation.
        generators: One for each image, for fresh noise; only ancestral steps draw.
    """
    stage, u, u_next = span.stage, span.u, span.u_next
    match kind:
        case "euler":
            velocity = velocity_from_clean(x, found.clean, u, stage)
            return (expand_time(span.length, x) * velocity).add_(x), found  # one copy less than a sum
        case "heun":
            length, velocity = expand_time(span.length, x), velocity_from_clean(x, found.clean, u, stage)
            ahead = x + length * velocity
            found = evaluate(ahead, u_next)
            velocity = velocity + velocity_from_clean(ahead, found.clean, u_next, stage)
            return x + length / 2 * velocity, found
        case "ancestral":
            assert generators is not None, "fresh noise needs generators"
            level, level_next = stage.noise_level(u), stage.noise_level(u_next)
            kept = expand_time(level_next * (1 - level) / (level * (1 - level_next)), x)
            noise = kept * noise_from_clean(x, found.clean, u, stage)
            noise = noise + (1 - kept.square()).sqrt() * normal(x.shape, generators)
            return path(found.clean, noise, u_next, stage).x, found


def textured(
    first: Denoised, last: Denoised, x: Float[Tensor, "b c h w"], stage: Stage, texture: float
) -> tuple[Float[Tensor, "b c h w"], Denoised]:
    """The state and result at the end of a stage, with a share of the texture that its steps drew.

    Args:
        first: Result of the first evaluation of the stage.
        last: Result of the last one.
        x: The state at the end of the stage.
        stage: Which stage.
        texture: In [0, 1].
    """
    clean = torch.lerp(first.clean, last.clean, texture)
    return x + (1 - stage.t_end) * (clean - last.clean), Denoised(clean, last.features)
