"""What the convolutional denoiser runs at a stage: two grids of wide features, and a thin head at full resolution.

    x, base -> patches of 4 x 4, on a grid of 1/4 -> blocks -> grid of 1/8 -> blocks -> grid of 1/4 -> blocks
            -> 4 x 4 patches of head features -> convolutions at full resolution, which see x and base again -> residual

All sides are those of the stage. Most of the computation runs on two grids of wide features, where dense 3 x 3
convolutions are efficient matrix products. Only the thin head runs at full resolution, across the borders of patches,
so that patches leave no visible grid.

One such network serves all stages, or the last ones have their own: at half the side an evaluation costs a quarter, so
that wide coarse stages are cheap, and fewer blocks in the last one save most.

Features are normalised to unit scale before the head, and modulations are bounded. Otherwise features of a coarse
stage, whose loss is small, can grow until the head saturates and its gradient vanishes.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepladder.configs import MAX_DEPTH, MAX_WIDTH, check_between
from stepladder.nn.blocks import ChannelNorm, Modulation, ResidualBlock, zero_init
from stepladder.nn.embedding import TimeFeatures
from stepladder.sampling.scales import down

__all__ = ["PATCH", "StageNetwork", "StageNetworkConfig"]

PATCH = 4
"""Side of a patch: the finer of the two grids has a cell for each."""


@dataclass(frozen=True, kw_only=True)
class StageNetworkConfig:
    """Sizes of the network of a stage."""

    width: int = 96
    """Channels on the grid of 1/4."""
    depth: int = 2
    """Residual blocks on the grid of 1/4 before the coarse grid, and as many after it."""
    coarse_width: int = 192
    """Channels on the grid of 1/8."""
    coarse_depth: int = 3
    """Residual blocks on the grid of 1/8."""
    head_width: int = 16
    """Channels at full resolution."""

    def __post_init__(self) -> None:
        widths = ("width", "coarse_width", "head_width")
        check_between(self, 1, MAX_WIDTH, *widths, where="Decoder", usual="16 to 512")
        check_between(self, 0, MAX_DEPTH, "depth", "coarse_depth", where="Decoder", usual="2 to 8")

    @property
    def reach(self) -> int:
        """Receptive field on each side, in pixels: all convolutions of 3 x 3, each on its own grid."""
        after = 1 + 2 * self.depth  # cells of 1/4: the head, the blocks after the coarse grid
        coarse = -(-after // 2) + 2 * self.coarse_depth  # cells of 1/8
        return PATCH * (2 * coarse + 1 + 2 * self.depth + 1)  # the way to 1/8, the blocks before it, the stem


class StageNetwork(nn.Module):
    """From what a stage sees to features, and to what is added to its linear estimate."""

    def __init__(self, config: StageNetworkConfig, *, embedding: int, context: int, received: int | None) -> None:
        """Builds the network.

        Args:
            config: Its sizes.
            embedding: Width of the embedding of noise coordinate and scale.
            context: Channels of the features of the latent.
            received: Channels of the features that it receives from the stage before; None if it receives none.
        """
        super().__init__()
        self.stem = nn.Conv2d(6 * PATCH**2, config.width, 3, padding=1)
        self.inject = nn.Conv2d(context, config.width, 1)
        self.before = _blocks(embedding, config.width, config.depth)
        self.coarsen = nn.Conv2d(config.width, config.coarse_width, 3, stride=2, padding=1)
        self.coarse = _blocks(embedding, config.coarse_width, config.coarse_depth)
        self.refine = nn.Conv2d(config.coarse_width, config.width, 1)
        self.after = _blocks(embedding, config.width, config.depth)
        self.norm = ChannelNorm(config.width)
        self.modulation = Modulation(embedding, config.width)
        self.head_modulation = Modulation(embedding, config.head_width)
        self.receives = received is not None
        if received is not None:
            self.receive_norm = ChannelNorm(received)
            self.receive = zero_init(nn.Conv2d(received, config.coarse_width, 1))
        self.to_head = nn.Conv2d(config.width, config.head_width * PATCH**2, 1)
        self.head = nn.Conv2d(config.head_width + 6, config.head_width, 3, padding=1)
        self.out = zero_init(nn.Conv2d(config.head_width, 3, 3, padding=1))

    def forward(
        self,
        seen: Float[Tensor, "b 6 h w"],
        embedding: TimeFeatures,
        context: Float[Tensor, "b n y x"],
        received: Float[Tensor, "b m y2 x2"] | None,
        *,
        cell: int,
        downscale: int,
    ) -> tuple[Float[Tensor, "b width y4 x4"], Float[Tensor, "b 3 h w"]]:
        """Features on the grid of 1/4, and the residual.

        Args:
            seen: Noisy image and base.
            embedding: Of noise coordinate and scale.
            context: Features of the latent.
            received: Features of the stage before, whose grid of 1/4 is the one of 1/8 here; None at the first stage.
            cell: Side of a cell of `context`, in pixels of the image.
            downscale: Image side over the side of the stage.
        """
        h = self.stem(F.pixel_unshuffle(seen, PATCH)) + _resample(self.inject(context), cell, PATCH * downscale)
        for block in self.before:
            h = block(h, embedding)  # (B, width, h/4, w/4)
        low = self.coarsen(h)  # (B, coarse_width, h/8, w/8)
        if self.receives and received is not None:
            low = low + self.receive(self.receive_norm(received))
        for block in self.coarse:
            low = block(low, embedding)
        h = h + F.interpolate(self.refine(low), scale_factor=2.0, mode="nearest")
        for block in self.after:
            h = block(h, embedding)
        return h, self._head(h, seen, embedding)

    def _head(self, features: Tensor, seen: Tensor, embedding: TimeFeatures) -> Float[Tensor, "b 3 h w"]:
        """The layers at full resolution, across the borders of patches."""
        features = self.modulation(self.norm(features), embedding)
        hidden = F.pixel_shuffle(self.to_head(F.silu(features)), PATCH)  # (B, head_width, h, w)
        hidden = torch.cat([hidden, seen.to(hidden.dtype)], dim=1)  # of one name, so that at most two are held
        hidden = self.head_modulation(self.head(hidden), embedding)
        residual: Tensor = self.out(F.silu(hidden))
        return residual


def _blocks(embedding: int, width: int, depth: int) -> nn.ModuleList:
    return nn.ModuleList(ResidualBlock(width, embedding=embedding) for _ in range(depth))


def _resample(features: Tensor, from_stride: int, to_stride: int) -> Tensor:
    """Resamples features from one stride to another: means to a coarser grid, repeats to a finer one."""
    if to_stride >= from_stride:
        return down(features, to_stride // from_stride)
    return F.interpolate(features, scale_factor=float(from_stride // to_stride), mode="nearest")
