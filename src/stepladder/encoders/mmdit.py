"""A transformer encoder that reads an image into a list of tokens.

    image -> patches (P x P) -> one stream;   N learned registers -> the other
    joint blocks;   registers after the last one -> (B, N, D)

A token belongs to no position: registers can gather what describes the image best, from anywhere in it.

With a linear part, tokens are spread over the image. Each has a cell, and the transformer adds to a linear code of that
cell, which can start from principal components (`linear`). This helps short trainings a lot; the networks of the paper
do not have it.

Reference: An Image is Worth 32 Tokens (Yu et al., 2024), https://arxiv.org/abs/2406.07550; with two streams as in
arXiv 2603.19570
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepladder.configs import check_between
from stepladder.errors import ConfigError
from stepladder.layouts import token_cell
from stepladder.nn.blocks import zero_init
from stepladder.nn.rotary import LatentPositions, grid_angles, token_angles
from stepladder.nn.transformer import JointBlock, TokenNorm, check_transformer, run_blocks

__all__ = ["MMDiTEncoder", "MMDiTEncoderConfig"]

_MAX_TOKENS = 16_384
_MAX_SIDE = 8192


@dataclass(frozen=True, kw_only=True)
class MMDiTEncoderConfig:
    """Sizes of the transformer encoder."""

    kind: Literal["mmdit"] = "mmdit"
    """Which encoder."""
    image_side: int = 256
    """Side of the images that it takes."""
    patch: int = 16
    """P, side of a patch."""
    tokens: int = 128
    """N, latent tokens."""
    width: int = 768
    """Features of a token inside the blocks."""
    depth: int = 12
    """Joint blocks."""
    heads: int = 12
    """Attention heads."""
    latent_positions: LatentPositions = "cross"
    """Rotary positions of the latent tokens: 'none', '1d', 'cross' (a row below the image) or 'grid' (over it)."""
    linear: bool = False
    """Whether features are what the transformer adds to a linear code of the cell of each token."""

    def __post_init__(self) -> None:
        check_transformer("Encoder", self.patch, self.width, self.depth, self.heads)
        check_between(self, 1, _MAX_TOKENS, "tokens", where="Encoder", usual="32 to 256")
        check_between(self, 1, _MAX_SIDE, "image_side", where="Encoder", usual="64 to 512")
        if self.image_side % self.patch:
            raise ConfigError(
                f"Encoder image_side {self.image_side} is not a multiple of its patch {self.patch}. Pass one."
            )
        if self.linear:
            token_cell(self.tokens, self.image_side)


class MMDiTEncoder(nn.Module):
    """Images (B, 3, S, S) to features (B, N, out_channels)."""

    reach = None
    """Tokens see the whole image."""

    can_checkpoint = True
    """It can recompute the activations of its blocks instead of storing them."""

    def __init__(self, config: MMDiTEncoderConfig, out_channels: int) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = False
        width = config.width
        self.stem = nn.Linear(3 * config.patch**2, width)
        self.registers = nn.Parameter(torch.randn(config.tokens, width))
        self.blocks = nn.ModuleList(
            JointBlock(width, config.heads, last=i == config.depth - 1) for i in range(config.depth)
        )
        self.norm = TokenNorm(width)
        self.out = nn.Linear(width, out_channels)
        self.linear: nn.Conv2d | None = None
        if config.linear:
            cell = token_cell(config.tokens, config.image_side)
            self.linear = nn.Conv2d(3, out_channels, cell, stride=cell)
            zero_init(self.out)

    def forward(self, images: Float[Tensor, "b 3 S S"]) -> Float[Tensor, "b n d"]:
        """Encodes images in [-1, 1] whose sides are multiples of the patch."""
        config = self.config
        patches = F.pixel_unshuffle(images, config.patch)  # (B, 3 P P, S/P, S/P)
        rows, columns = patches.shape[2:]
        pairs = config.width // config.heads // 2
        angles = (
            token_angles(config.latent_positions, config.tokens, pairs, images.device),
            grid_angles(rows, columns, pairs, images.device),
        )
        image = self.stem(patches.flatten(2).transpose(1, 2))  # (B, patches, width)
        registers = self.registers.expand(images.shape[0], -1, -1)
        registers, _ = run_blocks(self.blocks, registers, image, angles, checkpointing=self.checkpointing)
        features: Tensor = self.out(self.norm(registers))
        if self.linear is not None:
            features = features + self.linear(images).flatten(2).transpose(1, 2)
        return features
