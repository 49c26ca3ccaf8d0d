"""What quantised bottlenecks share: rows of vectors, gradients through rounding, and codebook usage.

    usage = (different codes in the batch) / K,      perplexity = exp(-sum_i p_i log p_i),   p_i = share of code i

Both describe one batch, so neither exceeds its number of vectors. Perplexity is the number of equally used codes with
the same entropy.

Reference of the straight-through gradient: Estimating or Propagating Gradients Through Stochastic Neurons (Bengio et
al., 2013), https://arxiv.org/abs/1308.3432
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepladder.bottlenecks.base import channel_dim

__all__ = ["MAX_CODES", "code_statistics", "from_rows", "straight_through", "to_rows"]

MAX_CODES = 2**31 - 1
"""Largest number of codes: their indices fit int32, the widest that a latent file holds."""


def to_rows(latent: Float[Tensor, "b ..."]) -> Float[Tensor, "b ... c"]:
    """Channels last, so that each position or token is one row: (B, h, w, c) or (B, N, D)."""
    return latent.movedim(channel_dim(latent), -1)


def from_rows(rows: Float[Tensor, "b ... c"]) -> Float[Tensor, "b ..."]:
    """The inverse of `to_rows`."""
    return rows.movedim(-1, channel_dim(rows))


def straight_through(value: Float[Tensor, "*shape"], smooth: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Exactly `value`, with the gradient of `smooth`."""
    return value.detach() + (smooth - smooth.detach())


@torch.no_grad()
def code_statistics(indices: Int[Tensor, "b ..."], codebook_size: int) -> dict[str, Float[Tensor, ""]]:
    """Usage and perplexity of the codes of a batch, for its records."""
    places = indices.flatten().sort().values
    begins = torch.cat([places.new_ones(1), (places.diff() != 0).long()])  # sizes that depend on values would wait
    counts = torch.zeros_like(places).scatter_add_(0, begins.cumsum(0) - 1, torch.ones_like(places))
    shares = counts / places.numel()
    return {
        "codebook_usage": begins.sum() / codebook_size,
        "codebook_perplexity": torch.special.entr(shares).sum().exp(),
    }
