"""A convolutional encoder: a linear transform of patches plus a residual network.

    features = L(x) + N(x)

L is one linear map of non-overlapping f x f patches, N a small network whose last layer starts at zero. L can start
from the principal components of real patches (`encoders.linear`). Then the encoder starts as the best linear block code
of its size, a data-driven relative of JPEG's transform. Cost is linear in pixels; there are no positions, so any
multiple of f works.
"""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepladder.configs import MAX_DEPTH, MAX_WIDTH, check_between
from stepladder.errors import ConfigError
from stepladder.nn.blocks import ResidualBlock, zero_init

__all__ = ["ConvEncoder", "ConvEncoderConfig"]

_MAX_STRIDE = 64


@dataclass(frozen=True, kw_only=True)
class ConvEncoderConfig:
    """Sizes of the convolutional encoder."""

    kind: Literal["conv"] = "conv"
    """Which encoder."""
    stride: int = 8
    """f, image side over latent side; 4 or a larger power of two."""
    width: int = 64
    """Channels at a quarter of the image side; doubled once at the next halving and kept after it."""
    depth: int = 2
    """Residual blocks at a quarter of the side."""
    latent_depth: int = 3
    """Residual blocks at the side of the latent."""

    def __post_init__(self) -> None:
        check_between(self, 4, _MAX_STRIDE, "stride", where="Encoder", usual="8 and 16")
        if self.stride & (self.stride - 1):
            raise ConfigError(f"Encoder stride {self.stride} is no power of two. Pass 4, 8, 16, 32 or 64.")
        check_between(self, 1, MAX_WIDTH, "width", where="Encoder", usual="32 to 256")
        check_between(self, 0, MAX_DEPTH, "depth", "latent_depth", where="Encoder", usual="2 to 8")


class ConvEncoder(nn.Module):
    """Images (B, 3, H, W) to features (B, out_channels, H/f, W/f)."""

    def __init__(self, config: ConvEncoderConfig, out_channels: int) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.linear = nn.Conv2d(3, out_channels, config.stride, stride=config.stride)
        self.stem = nn.Conv2d(48, width, 3, padding=1)
        layers: list[nn.Module] = [ResidualBlock(width) for _ in range(config.depth)]
        side = 4
        while side < config.stride:
            wider = 2 * config.width
            layers.append(nn.Conv2d(width, wider, 3, stride=2, padding=1))
            width, side = wider, 2 * side
        layers += [ResidualBlock(width) for _ in range(config.latent_depth)]
        self.trunk = nn.Sequential(*layers)
        self.out = zero_init(nn.Conv2d(width, out_channels, 3, padding=1))

    @property
    def reach(self) -> int:
        """Receptive field beyond a cell of the latent on each side, in pixels, rounded up to whole cells."""
        config, cell = self.config, 4
        reach = cell * (1 + 2 * config.depth)  # the stem, and the blocks of two convolutions
        while cell < config.stride:
            reach += cell
            cell *= 2
        reach += cell * (2 * config.latent_depth + 1)
        return -(-reach // config.stride) * config.stride

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b d h w"]:
        """Encodes images in [-1, 1] whose sides are multiples of the stride."""
        h = self.stem(F.pixel_unshuffle(images, 4))  # (B, width, H/4, W/4)
        features: Tensor = self.linear(images) + self.out(F.silu(self.trunk(h)))
        return features
