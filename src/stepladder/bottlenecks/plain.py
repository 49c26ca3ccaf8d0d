"""The plain bottleneck: the features are the latent, normalised to unit scale."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from stepladder.bottlenecks.base import Bottleneck, BottleneckOutput

__all__ = ["PlainBottleneck", "PlainConfig"]


@dataclass(frozen=True, kw_only=True)
class PlainConfig:
    """A deterministic latent."""

    kind: Literal["plain"] = "plain"
    """Which bottleneck."""


class PlainBottleneck(Bottleneck):
    """Normalises the features."""

    def __init__(self, config: PlainConfig, channels: int) -> None:
        super().__init__(channels)
        self.config = config

    def forward(self, features: Float[Tensor, "b ..."], generator: torch.Generator | None = None) -> BottleneckOutput:
        """Returns the normalised features; draws nothing."""
        return BottleneckOutput(latent=self.scale(features), loss=features.new_zeros(()))
