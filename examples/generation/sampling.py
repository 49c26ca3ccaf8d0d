"""Drawing latents: the flow from noise (t = 1) to a latent (t = 0), by Heun's method.

    v = velocity(x, t);    ahead = x + (s - t) v;    x <- x + (s - t) (v + velocity(ahead, s)) / 2

from each time t to the next, s; the last step, to s = 0, takes v alone. Every latent has a seed of its own, so it is
the same alone or in a batch. The decoder draws noise, too, which must not be the same numbers: its seeds are others.

Reference: Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
https://arxiv.org/abs/2206.00364
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from examples.generation.latents import from_tokens
from examples.generation.model import Prior
from stepladder.errors import ConfigError
from stepladder.sampling.guidance import GuidanceConfig, guide
from stepladder.sampling.randomness import generators, normal

__all__ = ["MAX_SEED", "decoder_seeds", "draw", "evaluations"]

MAX_SEED = 2**31 - 1
"""Seeds of latents are at most this; those of decoders follow."""


def decoder_seeds(seeds: Sequence[int]) -> list[int]:
    """A seed for the decoding of each latent."""
    return [MAX_SEED + 1 + seed for seed in seeds]


@torch.inference_mode()
def draw(
    prior: Prior, labels: Sequence[int], seeds: Sequence[int], *, steps: int, guidance: GuidanceConfig
) -> Float[Tensor, "b ..."]:
    """Draws one latent for each label, as the tokenizer's decoder takes it.

    Args:
        prior: In evaluation mode.
        labels: Class of each latent, as the data numbers it.
        seeds: One for each latent.
        steps: Of Heun's method.
        guidance: Away from what is drawn without a class; its interval is one of times.

    Raises:
        ConfigError: If a class is unknown, a seed too large or the number of steps less than 1.
    """
    _check_steps(steps)
    if any(not 0 <= seed <= MAX_SEED for seed in seeds):
        raise ConfigError(f"Seeds reach from {min(seeds)} to {max(seeds)}. Accepted: 0 to {MAX_SEED}. Pass others.")
    config, classes = prior.config, prior.classes(labels)
    none = torch.full_like(classes, prior.no_class)

    def velocity(x: Tensor, time: float) -> Tensor:
        t = torch.full((len(x),), time, device=x.device)
        return guide(guidance.scales(t), lambda: prior(x, t, classes), lambda: prior(x, t, none))

    x = normal((len(classes), config.tokens, config.channels), generators(seeds, classes.device))
    for time, following in pairwise(_times(steps)):
        slope = velocity(x, time)
        if following:
            slope = (slope + velocity(x + (following - time) * slope, following)) / 2
        x = x + (following - time) * slope
    return from_tokens(prior.restore(x), config.shape)


def evaluations(steps: int, guidance: GuidanceConfig) -> int:
    """Evaluations of the prior for one latent: two at a time where guidance mixes or goes beyond."""
    inner = _times(steps)[1:-1]
    scales = guidance.scales(torch.tensor([1.0, *inner, *inner]))
    return sum(1 if scale in (0, 1) else 2 for scale in scales.tolist())


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ConfigError(f"Prior steps {steps} is less than 1. Pass 1 or more, for example 16.")


def _times(steps: int) -> list[float]:
    """From 1 down to 0."""
    return [1 - step / steps for step in range(steps + 1)]
