"""The plain bottleneck: the features are the latent, normalised to unit scale."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stepladder.bottlenecks.base import BottleneckOutput, LatentScale

__all__ = ["PlainBottleneck", "PlainConfig"]


@dataclass(frozen=True, kw_only=True)
class PlainConfig:
    """A deterministic latent."""

    kind: Literal["plain"] = "plain"
    """Which bottleneck."""


class PlainBottleneck(nn.Module):
    """Normalises, and nothing else."""

    def __init__(self, config: PlainConfig, channels: int) -> None:
        super().__init__()
        self.config = config
        self.in_channels = channels
        self.scale = LatentScale(channels)

    def forward(self, features: Float[Tensor, "b ..."], generator: torch.Generator | None = None) -> BottleneckOutput:
        """Returns the normalised features; draws nothing."""
        return BottleneckOutput(latent=self.scale(features), loss=features.new_zeros(()))
