"""What all bottlenecks share: their contract, and the running scale that keeps latents at zero mean and unit variance.

Diffusion models need latents at unit scale, channel by channel. The scale is measured while the encoder trains, is
frozen with it, and is stored in the checkpoint, so that users see normalised latents only.

Features and latents are grids (B, c, h, w) or tokens (B, N, D); `channel_dim` gives the dimension of the channels.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, distributed, nn

from stepladder.bottlenecks.posterior import GaussianPosterior

__all__ = ["Bottleneck", "BottleneckOutput", "LatentScale", "channel_dim"]


@dataclass(frozen=True, slots=True)
class BottleneckOutput:
    """A latent, and what training and users need with it."""

    latent: Float[Tensor, "b ..."]
    """Normalised latent, (B, c, h, w) or (B, N, D)."""
    loss: Float[Tensor, ""]
    """The bottleneck's part of the training loss; zero if there is none."""
    indices: Int[Tensor, "b ..."] | None = None
    """Code indices of a quantised bottleneck, (B, h, w) or (B, N), int64."""
    posterior: GaussianPosterior | None = None
    """Distribution of the latent, of a variational bottleneck."""
    statistics: dict[str, Float[Tensor, ""]] = field(default_factory=dict)
    """Numbers about the batch for the records of training, by their names; empty in evaluation mode."""


def channel_dim(latent: Float[Tensor, "b ..."]) -> int:
    """The dimension of the channels: 1 of a grid (B, c, h, w), -1 of tokens (B, N, D).

    Raises:
        ValueError: If it is neither.
    """
    if latent.ndim not in (3, 4):
        raise ValueError(
            f"Features have shape {tuple(latent.shape)}. Accepted: (B, c, h, w) or (B, N, D). Reshape them to one."
        )
    return 1 if latent.ndim == 4 else -1


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

    def forward(self, raw: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Normalises; in training mode, where gradients are taken, it first takes the batch into the running values.

        Batches of several processes are taken in one after the other, on all of them, and each is normalised with the
        values of its turn: as if one process had them all.
        """
        mean, variance = self.mean, self.variance
        if self.training and torch.is_grad_enabled():
            mean, variance = self._update(raw.detach().float())
        shape = _row(raw)
        return (raw - mean.view(shape)) * (variance + 1e-6).rsqrt().view(shape)

    def inverse(self, latent: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """The features that `forward` normalises to this latent."""
        shape = _row(latent)
        return latent * (self.variance + 1e-6).sqrt().view(shape) + self.mean.view(shape)

    def spread(self, std: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Normalises standard deviations of a latent, as `forward` does its values."""
        shape = [1] * std.ndim
        shape[channel_dim(std)] = -1
        return std * (self.variance + 1e-6).rsqrt().view(shape)

    @torch.no_grad()
    def trust(self) -> None:
        """Treats the present values as measured: they are updated with the full momentum from here on."""
        self.batches.fill_(1 / (1 - self.decay))

    @torch.no_grad()
    def _update(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Takes in a batch, and those of other processes; mean and variance after this one."""
        channels = channel_dim(raw) % raw.ndim
        dims = [dim for dim in range(raw.ndim) if dim != channels]
        place, batches = _of_all_processes(torch.stack([raw.mean(dims), raw.var(dims, unbiased=False)]))
        turn = self.mean, self.variance
        for number, (batch_mean, batch_variance) in enumerate(batches):
            weight = torch.clamp(1 / (self.batches + 1), min=1 - self.decay)
            gap = batch_mean - self.mean
            self.variance.lerp_(batch_variance + (1 - weight) * gap.square(), weight)
            self.mean.lerp_(batch_mean, weight)
            self.batches.add_(1)
            if number == place < len(batches) - 1:
                turn = self.mean.clone(), self.variance.clone()
        return turn


def _of_all_processes(values: Tensor) -> tuple[int, list[Tensor]]:
    """Place of this process, and what all have, in their order."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, [values]
    found = [torch.empty_like(values) for _ in range(distributed.get_world_size())]
    distributed.all_gather(found, values.contiguous())
    return distributed.get_rank(), found


def _row(latent: Tensor) -> list[int]:
    """The shape of one number per channel, to broadcast with a latent."""
    shape = [1] * latent.ndim
    shape[channel_dim(latent)] = -1
    return shape


class Bottleneck(nn.Module, ABC):
    """Maps features of an encoder to a latent."""

    in_channels: int
    """Channels that the encoder must deliver."""
    codebook_size: int | None = None
    """Number of codes of a quantised latent; None of a continuous one."""

    def __init__(self, channels: int, *, in_channels: int | None = None) -> None:
        """For latents of `channels` channels, from `in_channels` features (by default as many)."""
        super().__init__()
        self.in_channels = channels if in_channels is None else in_channels
        self.scale = LatentScale(channels)

    @abstractmethod
    def forward(self, features: Float[Tensor, "b ..."], generator: torch.Generator | None = None) -> BottleneckOutput:
        """Encodes; a `generator` is needed only where training draws."""

    def from_indices(self, indices: Int[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Exactly the latent of `BottleneckOutput.indices`, each from 0 to `codebook_size` - 1.

        Raises:
            ValueError: If the latent is continuous.
        """
        raise ValueError("A continuous latent has no code indices. Decode the latent as it is.")
