"""Perceptual loss: distance of normalised features of a frozen network.

    L(x, y) = mean over layers of mean over positions of |f(x)/|f(x)| - f(y)/|f(y)||^2

with f the features at one position. It is the shape of LPIPS with unit weights.

Reference: The Unreasonable Effectiveness of Deep Features (Zhang et al., 2018), https://arxiv.org/abs/1801.03924
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from stepladder.nn.efficientnet import EfficientNetLite, FeaturePyramid, efficientnet_lite

__all__ = ["FeaturePyramid", "feature_distance", "feature_network", "perceptual_distance"]


def feature_network(*, device: torch.device | str = "cpu") -> EfficientNetLite:
    """The frozen network of losses and discriminators, EfficientNet-Lite0.

    Raises:
        MissingDependencyError: If its weights are not installed.
    """
    return efficientnet_lite(0, device=device)


def perceptual_distance(
    network: FeaturePyramid, images: Float[Tensor, "b 3 H W"], references: Float[Tensor, "b 3 H W"]
) -> Float[Tensor, " b"]:
    """Distance of each image to its reference, in [0, 4]; gradients flow to `images` only."""
    with torch.no_grad():
        wanted = network.pyramid(references)
    return feature_distance(network.pyramid(images), wanted)


def feature_distance(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Float[Tensor, " b"]:
    """The same distance from features that are already computed."""
    layers = [(_unit(a) - _unit(b)).square().sum(dim=1).mean(dim=(1, 2)) for a, b in zip(found, wanted, strict=True)]
    return torch.stack(layers).mean(dim=0)


def _unit(features: Tensor) -> Tensor:
    features = features.float()
    return features * torch.rsqrt(features.square().sum(dim=1, keepdim=True) + 1e-6)
