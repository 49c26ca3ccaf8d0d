"""The scales of latents of a frozen encoder, and how to tell them apart.

    raw output of the encoder, input of its own decoder
    pipeline input of a diffusion model: pack(raw) = offset + factor * pipeline
    unit input of a Stepladder model: raw = mean + deviation * unit, by measured statistics

Packing makes channels of blocks of cells: (c, h, w) to (c p p, h / p, w / p), as FLUX.2 does with p = 2.
"""

import logging
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from stepladder.configs import check_between
from stepladder.errors import ConfigError

__all__ = ["LatentSpace", "PipelineScale", "check_scale", "grid_of_tokens"]

_log = logging.getLogger(__name__)

LatentSpace: TypeAlias = Literal["raw", "pipeline"]
"""Which latents of a frozen encoder."""

_DECISIVE = 0.5
"""Nats per channel by which another scale must fit a latent better."""
_TOO_WIDE = 4.0
"""How many times the largest deviation of all scales is beyond them."""
_TOO_FLAT = 0.2
"""Share of the smallest deviation of all scales below which a latent says nothing of its scale."""


@dataclass(frozen=True, kw_only=True)
class PipelineScale:
    """How raw latents follow from those of a pipeline."""

    offset: list[float] = field(default_factory=lambda: [0.0])
    """Added last; one number, or one for each packed channel."""
    factor: list[float] = field(default_factory=lambda: [1.0])
    """Multiplies pipeline latents; one number, or one for each packed channel."""
    packing: int = 1
    """Side of the blocks of cells that a pipeline packs into channels."""

    def __post_init__(self) -> None:
        check_between(self, 1, 16, "packing", where="Pipeline scale", usual="1, and 2 for FLUX.2")
        if not self.offset or not self.factor or not all(value > 0 for value in self.factor):
            raise ConfigError(
                "Pipeline scale holds no offset or no factor, or a factor that is not positive. Accepted: one number, "
                "or one for each channel. Copy them from the autoencoder."
            )

    def raw(self, latent: Float[Tensor, "b p ph pw"]) -> Float[Tensor, "b c h w"]:
        """Raw latents from those of a pipeline."""
        return F.pixel_shuffle(latent * _row(self.factor, latent) + _row(self.offset, latent), self.packing)

    def raw_of_grid(self, latent: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The same of latents that are not packed."""
        return self.raw(F.pixel_unshuffle(latent, self.packing))

    def pipeline(self, raw: Float[Tensor, "b c h w"]) -> Float[Tensor, "b p ph pw"]:
        """Latents of a pipeline from raw ones."""
        packed = F.pixel_unshuffle(raw, self.packing)
        return (packed - _row(self.offset, packed)) / _row(self.factor, packed)


def grid_of_tokens(tokens: Float[Tensor, "b n c4"], cells: tuple[int, int]) -> Float[Tensor, "b c h w"]:
    """The grid of latents from tokens of 2 x 2 cells, as transformers such as FLUX have them.

    Args:
        tokens: Row by row.
        cells: (rows, columns) of blocks.
    """
    return F.pixel_shuffle(tokens.mT.reshape(tokens.shape[0], tokens.shape[2], *cells), 2)


@torch.no_grad()
def check_scale(latent: Float[Tensor, "b c h w"], mean: Float[Tensor, " c"], variance: Float[Tensor, " c"]) -> None:
    """Warns if latents seem to be raw, scaled twice, or of another model, rather than of unit scale.

    Mean m and deviation s of each channel are compared with what each scale expects of them, mu and sigma, by

        KL = log(sigma / s) + (s^2 + (m - mu)^2) / (2 sigma^2) - 1/2

    Latents of a nearly flat image fit every scale, and are not judged.

    Args:
        latent: What shall be decoded.
        mean: Of raw latents.
        variance: Of raw latents.
    """
    values = latent.float().transpose(0, 1).flatten(1)  # (c, n)
    found, spread = values.mean(1), values.std(1, unbiased=False).clamp_min(1e-3)
    deviation = variance.clamp_min(1e-12).sqrt().to(values)
    mean = mean.to(values)
    unit = _divergence(found, spread, torch.zeros_like(mean), torch.ones_like(mean))
    raw = _divergence(found, spread, mean, deviation)
    twice = _divergence(found, spread, -mean / deviation, 1 / deviation)
    best, what, advice = min(
        (
            raw,
            "not scaled: they look like those of the encoder itself",
            "Use stepladder.pipelines.unit_latents",
        ),
        (twice, "scaled twice, as it seems", "Pass them as `encode` gives them"),
    )
    scales = torch.stack([torch.ones_like(deviation), deviation, 1 / deviation])
    if (spread / scales.amin(0)).log().mean().exp() < _TOO_FLAT:
        return
    too_wide = (spread / scales.amax(0)).log().mean().exp() > _TOO_WIDE
    if too_wide:
        what, advice = "too large for every scale of this model", "Check which autoencoder and which factors made them"
    if too_wide or unit - best > _DECISIVE:
        _log.warning(
            "Latents with mean %.2g and deviation %.2g are %s. Accepted: unit scale. %s.",
            values.mean().item(),
            values.std().item(),
            what,
            advice,
        )


def _divergence(found: Tensor, spread: Tensor, mean: Tensor, deviation: Tensor) -> float:
    """The mean over the channels, in nats."""
    squares = (spread.square() + (found - mean).square()) / (2 * deviation.square())
    return (torch.log(deviation / spread) + squares - 0.5).mean().item()


def _row(values: list[float], latent: Tensor) -> Tensor:
    return torch.tensor(values, dtype=latent.dtype, device=latent.device).view(1, -1, 1, 1)
