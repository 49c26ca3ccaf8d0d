"""Moving average of weights, warmed up so that a short run's average is not mostly its initial weights.

decay(n) = min(d, (1 + n) / (10 + n))    at the n-th update
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

__all__ = ["ema_decay", "make_ema"]


def ema_decay(updates: int, limit: float) -> float:
    """Decay at the update after `updates` ones."""
    return min(limit, (1 + updates) / (10 + updates))


def make_ema(module: nn.Module, limit: float) -> AveragedModel:
    """A moving average of a module's parameters; buffers are copied. Call `update_parameters` after each step."""

    @torch.no_grad()
    def average(averages: Sequence[Tensor], values: Sequence[Tensor], updates: Tensor | int) -> None:
        torch._foreach_lerp_(list(averages), list(values), 1 - ema_decay(int(updates), limit))

    ema = AveragedModel(module, multi_avg_fn=average)
    ema.requires_grad_(False)
    return ema.eval()
