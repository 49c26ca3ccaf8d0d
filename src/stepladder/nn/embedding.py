"""Embeddings of continuous numbers, and their projections.

A network that runs only at a few known times needs no embedding: the output of each `Projection` becomes a table
(`tabulate`), and the network looks rows up by number.
"""

import math
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

__all__ = ["Projection", "ScalarEmbedding", "TimeFeatures", "tabulate"]

TimeFeatures: TypeAlias = Float[Tensor, "b e"] | Int[Tensor, " rows"]
"""An embedding, or the numbers of rows of the tables of a fused network."""

_MIN_TURNS = 0.5


class ScalarEmbedding(nn.Module):
    """Maps numbers of a bounded range to vectors: sines and cosines at geometric frequencies.

    Frequencies run from half a turn to `max_turns` turns over a unit interval: low enough to distinguish the whole
    range, high enough to distinguish neighbouring noise levels.
    """

    def __init__(self, width: int, *, max_turns: float = 32.0) -> None:
        """An embedding of even width."""
        super().__init__()
        self.width = width
        self.max_turns = max_turns

    def forward(self, numbers: Float[Tensor, " b"]) -> Float[Tensor, "b e"]:
        """Embeds float32 numbers (B,) as (B, width), in float32."""
        half = self.width // 2
        exponents = torch.arange(half, device=numbers.device, dtype=torch.float32) / max(1, half - 1)
        turns = _MIN_TURNS * (self.max_turns / _MIN_TURNS) ** exponents
        angles = numbers.float()[:, None] * (2 * math.pi * turns)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class Projection(nn.Linear):
    """Projects an embedding to scales, shifts or gates of a layer."""


@torch.no_grad()
def tabulate(network: nn.Module, embeddings: Float[Tensor, "n e"]) -> None:
    """Replaces each projection in a network, in place, by the table of its outputs for `embeddings`.

    Afterwards the layers take row numbers, int64 of shape (B,), instead of embeddings.
    """
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Projection):
                setattr(module, name, nn.Embedding.from_pretrained(child(embeddings)))
