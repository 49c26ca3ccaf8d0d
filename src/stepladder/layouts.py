"""Layouts: the shape of the latent of an image.

    grid     (B, c, h, w), h = ceil(H / f), w = ceil(W / f): one vector for each f x f patch, for images of any size
    tokens   (B, N, D): a list of N vectors without positions, for images of one size

Code that depends on the difference uses a layout; networks, bottlenecks and files see only shapes.

Reference of the second kind: An Image is Worth 32 Tokens (Yu et al., 2024), https://arxiv.org/abs/2406.07550
"""

import math
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from stepladder.errors import ConfigError, ImageError
from stepladder.images import pad_to_multiple
from stepladder.nn.rotary import token_grid

__all__ = [
    "GridLayout",
    "Layout",
    "TokenLayout",
    "check_finite",
    "check_indices",
    "check_ladder",
    "check_side",
    "token_cell",
]


@dataclass(frozen=True, slots=True)
class GridLayout:
    """Latents (B, c, h, w), at 1/f of the side of the image."""

    channels: int
    """c."""
    stride: int
    """f."""

    @property
    def side_multiple(self) -> int:
        """Sides that are multiples of this need no padding."""
        return self.stride

    def shape(self, size: tuple[int, int]) -> tuple[int, ...]:
        """(c, h, w) of one latent, for an image of (H, W)."""
        return self.channels, -(-size[0] // self.stride), -(-size[1] // self.stride)

    def covers(self, latent: Float[Tensor, "b ..."]) -> tuple[int, int]:
        """(H, W) of what the latent describes, padding included."""
        return latent.shape[2] * self.stride, latent.shape[3] * self.stride

    def check_size(self, size: tuple[int, int]) -> None:
        """Any size fits."""

    def check(self, latent: Float[Tensor, "b ..."]) -> None:
        """Checks that a tensor is a batch of such latents.

        Raises:
            ValueError: If it is not.
        """
        if latent.ndim != 4 or latent.shape[1] != self.channels or not latent.is_floating_point():
            raise ValueError(_misfit(latent, f"(B, {self.channels}, h, w)"))

    def fit(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c ph pw"]:
        """Pads images to whole patches."""
        return pad_to_multiple(images, self.stride)

    def fit_latent(self, latent: Float[Tensor, "b c h w"], side_multiple: int) -> Float[Tensor, "b c ph pw"]:
        """Repeats the last row and column until what the latent covers has sides that are multiples."""
        multiple = math.lcm(side_multiple, self.stride) // self.stride
        bottom, right = -latent.shape[2] % multiple, -latent.shape[3] % multiple
        return F.pad(latent, (0, right, 0, bottom), mode="replicate") if bottom or right else latent

    def __str__(self) -> str:
        return f"f{self.stride}c{self.channels}"


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """Latents (B, N, D), for square images of one size."""

    tokens: int
    """N."""
    channels: int
    """D."""
    side: int
    """Of the images, in pixels."""

    @property
    def side_multiple(self) -> int:
        """Sides must be this."""
        return self.side

    def shape(self, size: tuple[int, int]) -> tuple[int, ...]:
        """(N, D)."""
        return self.tokens, self.channels

    def covers(self, latent: Float[Tensor, "b ..."]) -> tuple[int, int]:
        """(H, W) of the image."""
        return self.side, self.side

    def check_size(self, size: tuple[int, int]) -> None:
        """Checks that images have the one size that fits.

        Raises:
            ImageError: If they do not.
        """
        if size != (self.side, self.side):
            height, width = size
            raise ImageError(
                f"Image size {width} x {height} does not fit a model with {self.tokens} latent tokens for "
                f"{self.side} x {self.side}. Crop and resize it first: stepladder.images.centre_crop_resize, or "
                f"--size {self.side}."
            )

    def check(self, latent: Float[Tensor, "b ..."]) -> None:
        """Checks that a tensor is a batch of such latents.

        Raises:
            ValueError: If it is not.
        """
        if latent.ndim != 3 or latent.shape[1:] != (self.tokens, self.channels) or not latent.is_floating_point():
            raise ValueError(_misfit(latent, f"(B, {self.tokens}, {self.channels})"))

    def fit(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Images as they are, once their size is checked."""
        self.check_size((images.shape[2], images.shape[3]))
        return images

    def fit_latent(self, latent: Float[Tensor, "b n d"], side_multiple: int) -> Float[Tensor, "b n d"]:
        """Latents as they are."""
        assert self.side % side_multiple == 0
        return latent

    def __str__(self) -> str:
        return f"{self.tokens} tokens of {self.channels}"


Layout: TypeAlias = GridLayout | TokenLayout


def token_cell(tokens: int, side: int) -> tuple[int, int]:
    """(rows, columns) of pixels that one latent token stands for, where tokens are spread over the image.

    Raises:
        ConfigError: If the image cannot be cut into as many cells.
    """
    rows, columns = token_grid(tokens)
    if side % rows or side % columns:
        raise ConfigError(
            f"An image of {side} x {side} cannot be cut into {rows} x {columns} equal cells, one for each latent "
            "token. Use a number of tokens whose grid divides the side, or leave out the linear part (linear = false)."
        )
    return side // rows, side // columns


def check_side(layout: Layout, side: int, model: str) -> None:
    """Checks that square images of a side can be encoded, before work starts.

    Args:
        layout: Of the latents of a model.
        side: The side that was asked for.
        model: Its name, for the message.

    Raises:
        ConfigError: If the model takes another side only.
    """
    if isinstance(layout, TokenLayout) and side != layout.side:
        only = layout.side
        raise ConfigError(f"Image side {side} does not fit {model}. It takes {only} x {only} only. Pass --size {only}.")


def check_ladder(layout: Layout, multiple: int, num_stages: int) -> None:
    """Checks that images of one size fit the ladder as they are: nothing could be cropped back.

    Args:
        layout: Of the latents.
        multiple: What the decoder needs of sides, for all of its stages.
        num_stages: How many.

    Raises:
        ConfigError: If they do not.
    """
    if isinstance(layout, TokenLayout) and layout.side % multiple:
        raise ConfigError(
            f"Image side {layout.side} is not a multiple of {multiple}, which the patch and {num_stages} stages need. "
            f"Use {max(1, round(layout.side / multiple)) * multiple}."
        )


def check_indices(layout: Layout, indices: Int[Tensor, "b ..."], codebook_size: int) -> None:
    """Checks code indices of latents.

    Raises:
        ValueError: If they have another dtype, shape or range.
    """
    places = [str(layout.tokens)] if isinstance(layout, TokenLayout) else ["h", "w"]
    counted = isinstance(layout, GridLayout) or indices.shape[1:] == (layout.tokens,)
    if indices.is_floating_point() or indices.dtype == torch.bool or indices.ndim != 1 + len(places) or not counted:
        raise ValueError(
            f"Code indices have shape {tuple(indices.shape)} and dtype {indices.dtype}. "
            f"Accepted: integers of shape (B, {', '.join(places)}). Encode with the same model."
        )
    low, high = (int(bound) for bound in indices.aminmax()) if indices.numel() else (0, 0)
    if low < 0 or high >= codebook_size:
        raise ValueError(
            f"Code indices reach from {low} to {high}. Accepted: 0 to {codebook_size - 1}. Encode with the same model."
        )


def check_finite(latent: Float[Tensor, "b ..."]) -> None:
    """Checks a batch of latents, which would decode to black pictures otherwise.

    Raises:
        ValueError: If one of them holds NaN or infinity.
    """
    finite = latent.isfinite().flatten(1).all(1).tolist()
    if not all(finite):
        raise ValueError(
            f"Latent {finite.index(False)} of {len(finite)} holds NaN or infinity. Latents are finite numbers. Encode "
            "the image again."
        )


def _misfit(latent: Tensor, accepted: str) -> str:
    return (
        f"Latent has shape {tuple(latent.shape)} and dtype {latent.dtype}. "
        f"Accepted: floats of shape {accepted}. Encode with the same model."
    )
