"""Explicit randomness: generators, one per image, or another source of noise.

With one generator per image, an image does not depend on the others in its batch: it decodes the same alone and among a
thousand. No module that draws touches torch's global state.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, get_args

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "Generators",
    "GivenNoise",
    "NoiseKind",
    "NoiseSource",
    "ZeroNoise",
    "generator",
    "generators",
    "noise_source",
    "normal",
    "uniform",
]

NoiseKind: TypeAlias = Literal["drawn", "zero"]
"""Where the noise of a decode comes from.

    "drawn"   from the seed of each image
    "zero" no noise: it is 0, and every decode of a latent gives the same image
"""


class NoiseSource(Protocol):
    """A source of noise instead of generators."""

    def normal(self, shape: Sequence[int]) -> Float[Tensor, "b ..."]:
        """Float32 of `shape`, which the caller may change in place."""
        ...


class GivenNoise:
    """White noise that was drawn before, returned in the order in which a decode asks: one part per stage."""

    def __init__(self, parts: Sequence[Float[Tensor, "b ..."]]) -> None:
        self._parts = iter(parts)

    def normal(self, shape: Sequence[int]) -> Float[Tensor, "b ..."]:
        """A copy of the next part."""
        return next(self._parts).clone()


@dataclass(frozen=True, slots=True)
class ZeroNoise:
    """No noise. A student of one step hardly uses its noise, so zeros do as well."""

    device: torch.device | str = "cpu"

    def normal(self, shape: Sequence[int]) -> Float[Tensor, "b ..."]:
        """Zeros."""
        return torch.zeros(tuple(shape), device=self.device)


Generators: TypeAlias = torch.Generator | Sequence[torch.Generator] | NoiseSource
"""One generator for a whole batch (training), one for each image (decoding), or another source."""


def generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device` that starts from `seed`, a whole number in [0, 2^63).

    On the CPU, torch takes the low 32 bits of a seed alone.

    Raises:
        ValueError: If the seed is negative or too large.
    """
    if not 0 <= seed < 2**63:
        raise ValueError(f"Seed {seed} is outside [0, 2^63). Pass a whole number in that range.")
    return torch.Generator(device=device).manual_seed(seed)


def generators(seeds: Sequence[int], device: torch.device | str = "cpu") -> list[torch.Generator]:
    """One generator for each image, from one seed for each image."""
    return [generator(seed, device) for seed in seeds]


def noise_source(
    kind: NoiseKind, seeds: Sequence[int] | None, count: int, device: torch.device
) -> Sequence[torch.Generator] | NoiseSource:
    """Where the noise of a decode comes from.

    Args:
        kind: Whether it is drawn.
        seeds: One for each latent; 0, 1, 2, ... by default.
        count: Number of latents.
        device: Where the images shall be.

    Raises:
        ValueError: If the kind is unknown, there is not one seed per latent, or there are seeds although nothing is
            drawn.
    """
    if kind not in get_args(NoiseKind):
        raise ValueError(f"Noise '{kind}' is unknown. Accepted: {', '.join(get_args(NoiseKind))}.")
    if kind == "zero":
        if seeds is not None:
            raise ValueError("Seeds do not fit noise 'zero', which draws none. Leave out one of them.")
        return ZeroNoise(device)
    seeds = range(count) if seeds is None else seeds
    if isinstance(seeds, int):
        raise ValueError(f"Seeds {seeds} is one number. Pass a list with one seed for each image, [{seeds}] for one.")
    if len(seeds) != count:
        raise ValueError(f"{len(seeds)} seeds for {count} latents. Pass one seed for each image.")
    return generators(seeds, device)


def normal(shape: Sequence[int], generators: Generators) -> Float[Tensor, "b ..."]:
    """Noise of `shape` (B, ...) in float32, on the device of the generators: white, unless another source gives it.

    Args:
        shape: Shape of the batch; its first number must be the number of generators where one is given an image.
        generators: One for the batch, one for each image, or another source.

    Raises:
        ValueError: If the number of generators is not the batch size.
    """
    if isinstance(generators, torch.Generator):
        return torch.randn(tuple(shape), generator=generators, device=generators.device)
    if not isinstance(generators, Sequence):
        return generators.normal(shape)
    if len(generators) != shape[0]:
        raise ValueError(f"{len(generators)} generators for {shape[0]} images. Pass one generator for each image.")
    noise = torch.empty(tuple(shape), dtype=torch.float32, device=generators[0].device if generators else None)
    for image, g in zip(noise, generators, strict=True):
        torch.randn(image.shape, generator=g, device=g.device, out=image)
    return noise


def uniform(count: int, generator: torch.Generator) -> Float[Tensor, " count"]:
    """`count` numbers in [0, 1), stratified: one from each of `count` equal intervals, in random order.

    Stratified times cover the range in every batch, which lowers the variance of the loss.
    """
    offsets = torch.rand(count, generator=generator, device=generator.device)
    order = torch.randperm(count, generator=generator, device=generator.device)
    return ((order + offsets) / count).clamp_max(1 - 2**-24)  # the largest float32 below 1, which rounding may reach
