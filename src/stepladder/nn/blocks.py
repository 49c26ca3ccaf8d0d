"""Convolutional residual blocks without statistics over the image.

The norm acts on the channels of one pixel alone. A norm over positions (batch, group or instance norm) would make the
result at a pixel depend on the size of the image around it, and a network trained on crops would then behave
differently on whole images and tiles.
"""

from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepladder.nn.embedding import Projection, TimeFeatures

__all__ = ["ChannelNorm", "Modulation", "ResidualBlock", "channels_last", "zero_init"]

Layer = TypeVar("Layer", bound=nn.Linear | nn.Conv2d)
AnyModule = TypeVar("AnyModule", bound=nn.Module)


class ChannelNorm(nn.Module):
    """RMS norm over the channels of each pixel, with a learned gain.

    Reference: Root Mean Square Layer Normalization (Zhang & Sennrich, 2019), https://arxiv.org/abs/1910.07467
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Scales each pixel to unit mean square."""
        scale = torch.rsqrt(x.float().square().mean(dim=1, keepdim=True) + 1e-6)
        return x * scale.to(x.dtype) * self.gain.to(x.dtype)[:, None, None]


class Modulation(nn.Module):
    """Bounded scale and shift of features by an embedding; the identity at the start of training.

    Both lie in (-1, 1), so that features stay close to unit scale and later activations do not saturate.

    Reference: Scalable Diffusion Models with Transformers (Peebles & Xie, 2022), https://arxiv.org/abs/2212.09748
    """

    def __init__(self, embedding: int, channels: int) -> None:
        super().__init__()
        self.project = zero_init(Projection(embedding, 2 * channels))

    def forward(self, x: Float[Tensor, "b c h w"], embedding: TimeFeatures) -> Float[Tensor, "b c h w"]:
        """Returns x (1 + scale) + shift."""
        scale, shift = self.project(embedding)[:, :, None, None].tanh().chunk(2, dim=1)  # (B, C, 1, 1) each
        return torch.addcmul(x + shift, x, scale)


class ResidualBlock(nn.Module):
    """x + conv(silu(conv(modulate(norm(x))))), the identity at the start of training."""

    def __init__(self, channels: int, *, embedding: int | None = None) -> None:
        """Builds the block.

        Args:
            channels: Features in and out.
            embedding: Width of the embedding that modulates the block; None for a block without one.
        """
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.modulation = Modulation(embedding, channels) if embedding else None
        self.inner = nn.Conv2d(channels, channels, 3, padding=1)
        self.outer = zero_init(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Float[Tensor, "b c h w"], embedding: TimeFeatures | None = None) -> Float[Tensor, "b c h w"]:
        """Adds the residual of the block to x."""
        h = self.norm(x)
        if self.modulation is not None:
            assert embedding is not None
            h = self.modulation(h, embedding)
        out: Tensor = x + self.outer(F.silu(self.inner(h)))
        return out


def channels_last(module: AnyModule) -> AnyModule:
    """Lays out the weights of convolutions channels last, in place: the layout in which they run fastest."""
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module


def zero_init(layer: Layer) -> Layer:
    """Sets all parameters of a layer to zero, so that its branch starts at zero."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
