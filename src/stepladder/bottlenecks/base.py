"""What all bottlenecks share: their contract, and the running scale that keeps latents at zero mean and unit variance.

A diffusion model that is trained on latents wants them at unit scale, channel by channel. The scale is measured while
the encoder trains, is frozen with it, and is stored in the checkpoint, so that users see normalised latents only.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

__all__ = ["Bottleneck", "BottleneckOutput", "LatentScale"]


@dataclass(frozen=True, slots=True)
class BottleneckOutput:
    """A latent and what training and users need beside it."""

    latent: Float[Tensor, "b c h w"]
    """Normalised latent."""
    loss: Float[Tensor, ""]
    """What the bottleneck adds to the training loss; zero if nothing."""
    indices: Int[Tensor, "b ..."] | None = None
    """Code indices of a quantised bottleneck."""
    posterior: object | None = None
    """Distribution of the latent, of a variational bottleneck."""


class Bottleneck(Protocol):
    """Maps features of an encoder to a latent."""

    @property
    def in_channels(self) -> int:
        """Channels that the encoder must deliver."""
        ...

    def __call__(
        self, features: Float[Tensor, "b d h w"], generator: torch.Generator | None = None
    ) -> BottleneckOutput:
        """Encodes; a `generator` is needed only where training draws noise."""
        ...


class LatentScale(nn.Module):
    """Subtracts a running mean and divides by a running standard deviation, one for each channel.

    The same running values are used in training and afterwards, so there is no gap between the two. They warm up like
    the mean over all batches seen, then follow with momentum `1 - decay`.
    """

    mean: Tensor
    variance: Tensor
    batches: Tensor

    def __init__(self, channels: int, *, decay: float = 0.999) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))
        self.register_buffer("batches", torch.zeros((), dtype=torch.float32))

    def forward(self, raw: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Normalises; in training mode, where gradients are taken, it first takes the batch into the running values."""
        if self.training and torch.is_grad_enabled():
            self._update(raw.detach().float())
        shape = (1, -1, *(1 for _ in raw.shape[2:]))
        return (raw - self.mean.view(shape)) * (self.variance + 1e-6).rsqrt().view(shape)

    @torch.no_grad()
    def trust(self) -> None:
        """Takes the present values as measured: from here on they only follow, with the full momentum."""
        self.batches.fill_(1 / (1 - self.decay))

    @torch.no_grad()
    def _update(self, raw: Tensor) -> None:
        dims = [0, *range(2, raw.ndim)]
        weight = torch.clamp(1 / (self.batches + 1), min=1 - self.decay)
        batch_mean = raw.mean(dims)
        batch_variance = raw.var(dims, unbiased=False)
        gap = batch_mean - self.mean
        self.variance.lerp_(batch_variance + (1 - weight) * gap.square(), weight)
        self.mean.lerp_(batch_mean, weight)
        self.batches.add_(1)
