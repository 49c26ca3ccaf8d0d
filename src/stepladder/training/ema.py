"""Moving average of weights, whose warm-up keeps the initial weights from dominating a short run.

decay(n) = min(d, (1 + n) / (10 + n))    after n steps

It replaces AveragedModel of torch 2.13, which reads a counter back from the device at every update.
"""

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

__all__ = ["MovingAverage", "ema_decay"]


def ema_decay(step: int, limit: float) -> float:
    """Decay at the update after step `step`, from 0."""
    return min(limit, (1 + step) / (10 + step))


class MovingAverage(nn.Module):
    """A copy of a model, whose parameters follow as a moving average; buffers are copied."""

    def __init__(self, model: nn.Module, limit: float) -> None:
        """Starts from the weights of the model; `limit` is the decay that the warm-up leads to."""
        super().__init__()
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.limit = limit

    @contextlib.contextmanager
    def whole(self) -> Iterator[nn.Module]:
        """The model with averaged weights."""
        yield self.module

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Updates the average after step `step`, from 0; the first update replaces the initial weights."""
        averages: list[Tensor] = list(self.module.parameters())
        values: list[Tensor] = list(model.parameters())
        torch._foreach_lerp_(averages, values, 1 - ema_decay(step, self.limit) if step else 1.0)
        for average, value in zip(self.module.buffers(), model.buffers(), strict=True):
            average.copy_(value)
