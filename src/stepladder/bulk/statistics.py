"""Mean and standard deviation of each channel, added up shard by shard.

    n = n_a + n_b,   d = m_b - m_a,   m = m_a + d n_b / n,   S = S_a + S_b + d^2 n_a n_b / n

S is the sum of squared distances from the mean m. Sums of squares alone would cancel for channels far from zero.

Reference: Updating Formulae and a Pairwise Algorithm for Computing Sample Variances (Chan, Golub and LeVeque, 1979)
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stepladder.bottlenecks.base import channel_dim

__all__ = ["ChannelStatistics"]


@dataclass
class ChannelStatistics:
    """Running values; empty at first."""

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    squares: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))

    def add(self, latents: Tensor) -> None:
        """Takes in a batch of latents (B, c, h, w) or (B, N, D)."""
        values = latents.detach().to("cpu", torch.float64).movedim(channel_dim(latents), 0).flatten(1)
        mean = values.mean(1)
        self._merge(values.shape[1], mean, (values - mean[:, None]).square().sum(1))

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"count": self.count, "mean": self.mean.tolist(), "squares": self.squares.tolist()}

    @classmethod
    def merged(cls, parts: Iterable[Mapping[str, Any]]) -> "ChannelStatistics":
        """The statistics of several parts; the order fixes the last bits."""
        total = cls()
        for part in parts:
            if part.get("count"):
                mean, squares = (torch.tensor(part[key], dtype=torch.float64) for key in ("mean", "squares"))
                total._merge(part["count"], mean, squares)
        return total

    @property
    def std(self) -> Tensor:
        """Standard deviation of each channel, as of a sample."""
        return (self.squares / max(1, self.count - 1)).sqrt()

    def _merge(self, count: int, mean: Tensor, squares: Tensor) -> None:
        if not self.count:
            self.count, self.mean, self.squares = count, mean, squares
            return
        total = self.count + count
        gap = mean - self.mean
        self.squares = self.squares + squares + gap.square() * (self.count * count / total)
        self.mean = self.mean + gap * (count / total)
        self.count = total
