"""Perceptual loss: distance of normalised features of a frozen network.

    L(x, y) = mean over layers of mean over positions of |f(x)/|f(x)| - f(y)/|f(y)||^2

with f the features at one position. It is the shape of LPIPS with unit weights.

Reference: The Unreasonable Effectiveness of Deep Features (Zhang et al., 2018), https://arxiv.org/abs/1801.03924
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["FeaturePyramid", "feature_distance", "perceptual_distance"]


class FeaturePyramid(nn.Module, ABC):
    """A frozen network that gives features of images in [-1, 1] at several scales."""

    channels: tuple[int, ...]
    """Of each layer of `pyramid`."""

    @abstractmethod
    def pyramid(self, images: Float[Tensor, "b 3 H W"]) -> list[Float[Tensor, "b c h w"]]:
        """Features (B, c, h, w), fine first."""


def perceptual_distance(
    network: FeaturePyramid, images: Float[Tensor, "b 3 H W"], references: Float[Tensor, "b 3 H W"]
) -> Float[Tensor, " b"]:
    """Distance of each image to its reference, in [0, 4]; gradients flow to `images` only."""
    with torch.no_grad():
        wanted = network.pyramid(references)
    return feature_distance(network.pyramid(images), wanted)


def feature_distance(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Float[Tensor, " b"]:
    """The same distance where the features of both are there already."""
    layers = [(_unit(a) - _unit(b)).square().sum(dim=1).mean(dim=(1, 2)) for a, b in zip(found, wanted, strict=True)]
    return torch.stack(layers).mean(dim=0)


def _unit(features: Tensor) -> Tensor:
    features = features.float()
    return features * torch.rsqrt(features.square().sum(dim=1, keepdim=True) + 1e-6)
