"""What each stage of a decode decides: how much images of one latent differ between seeds.

With X_i the image of stage i, at its own scale, and the standard deviation over seeds at each pixel, its square
averaged over pixels, channels and images,

    spread     of X_i                   all that was decided up to stage i
    decided    of X_i - X_(i-1)         what stage i decided beyond it, X_(i-1) enlarged; at the first stage, its spread

A stage that decides nothing is a deterministic network: it ignores its noise, and one step is enough for it. A latent
that leaves little open leaves little to decide.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stepladder.decoders.base import enlarge
from stepladder.errors import ConfigError
from stepladder.sampling.steps import EULER, SamplerConfig
from stepladder.tokenizer import Encoding, Tokenizer

__all__ = ["StageDecision", "decisions", "mean_decisions", "spread_maps"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StageDecision:
    """What one stage decides, as standard deviations over seeds, on [-1, 1]."""

    stage: int
    """Position on the ladder, from 0."""
    downscale: int
    """Image side over the side of this stage."""
    spread: float
    """Of its image."""
    decided: float
    """Of what it adds to the image of the stage before."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def decisions(
    tokenizer: Tokenizer,
    code: Encoding | Float[Tensor, "1 ..."],
    *,
    seeds: Sequence[int],
    steps: int | Sequence[int] | None = None,
    sampler: SamplerConfig = EULER,
) -> list[StageDecision]:
    """What each stage decides about the images of one latent.

    Args:
        tokenizer: In evaluation mode.
        code: One latent.
        seeds: At least two, decoded together.
        steps: Steps per stage; the tokenizer's own by default.
        sampler: How steps are taken.

    Raises:
        ConfigError: If there are fewer than two seeds, or more than one latent.
    """
    found: list[StageDecision] = []
    before: Tensor | None = None
    for stage, images in zip(tokenizer.schedule.stages, _images(tokenizer, code, seeds, steps, sampler), strict=True):
        handed = 0 if before is None else enlarge(before)[:, :, : images.shape[2], : images.shape[3]]
        found.append(
            StageDecision(
                stage=stage.index,
                downscale=stage.downscale,
                spread=_spread(images),
                decided=_spread(images - handed),
            )
        )
        before = images
    return found


def mean_decisions(found: Sequence[Sequence[StageDecision]]) -> list[StageDecision]:
    """Those of several latents: squares are averaged."""

    def mean(values: Sequence[float]) -> float:
        return float(torch.tensor(values, dtype=torch.float64).square().mean().sqrt())

    return [
        StageDecision(
            stage=stages[0].stage,
            downscale=stages[0].downscale,
            spread=mean([each.spread for each in stages]),
            decided=mean([each.decided for each in stages]),
        )
        for stages in zip(*found, strict=True)
    ]


def spread_maps(
    tokenizer: Tokenizer,
    code: Encoding | Float[Tensor, "1 ..."],
    *,
    seeds: Sequence[int],
    steps: int | Sequence[int] | None = None,
    sampler: SamplerConfig = EULER,
) -> list[Float[Tensor, "1 1 h w"]]:
    """Where the images of each stage differ: the standard deviation over seeds at each pixel, mean over channels."""
    return [
        images.var(dim=0, keepdim=True).mean(dim=1, keepdim=True).sqrt()
        for images in _images(tokenizer, code, seeds, steps, sampler)
    ]


def _images(
    tokenizer: Tokenizer,
    code: Encoding | Tensor,
    seeds: Sequence[int],
    steps: int | Sequence[int] | None,
    sampler: SamplerConfig,
) -> list[Float[Tensor, "s 3 h w"]]:
    """The images of each stage, one for each seed."""
    latent = code.latent if isinstance(code, Encoding) else code
    if len(latent) != 1 or len(set(seeds)) < 2:
        raise ConfigError(
            f"Decisions about {len(latent)} latents with {len(set(seeds))} seeds. One latent and at least 2 different "
            "seeds are needed. Pass one latent at a time, and more seeds."
        )
    together = latent.expand(len(seeds), *latent.shape[1:])
    size = code.size if isinstance(code, Encoding) else None
    return list(tokenizer.decode_progressively(together, seeds=seeds, steps=steps, size=size, sampler=sampler))


def _spread(images: Float[Tensor, "s 3 h w"]) -> float:
    """Standard deviation over seeds; its square is averaged over pixels and channels."""
    return images.var(dim=0).mean().sqrt().item()
