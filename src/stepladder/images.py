"""Images at the border: files and PIL on one side, float tensors in [-1, 1] on the other.

    tensor = byte / 127.5 - 1,    byte = round_half_even(clamp(127.5 (tensor + 1), 0, 255))

Every byte survives the round trip. Only this module and `pictures`, which reads and writes the files, use uint8, HWC,
[0, 255] and PIL; the rest of the library has float tensors (B, 3, H, W).
"""

import io

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from stepladder.pictures import (
    IMAGE_SUFFIXES,
    MAX_PIXELS,
    RESIZE_FILTER,
    Stream,
    centre_crop_resize,
    from_array,
    grid,
    image_files,
    images_below,
    is_image_name,
    load_image,
    save_png,
    side_by_side,
    to_array,
)

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "RESIZE_FILTER",
    "Stream",
    "centre_crop_resize",
    "check_images",
    "crop_to",
    "from_uint8",
    "grid",
    "image_files",
    "images_below",
    "is_image_name",
    "load_image",
    "pad_to_multiple",
    "pixels",
    "save_png",
    "side_by_side",
    "to_pil",
    "to_png",
    "to_tensor",
    "to_uint8",
]

_FAR_OUTSIDE = 8.0
"""Values of this size are no images in [-1, 1], whatever was done to them: bytes as floats, for example."""


def to_tensor(image: Image.Image) -> Float[Tensor, "3 h w"]:
    """8-bit RGB to float32 in [-1, 1].

    Raises:
        ImageError: If the image is of another mode.
    """
    return torch.from_numpy(to_array(image))


def pixels(image: Image.Image) -> UInt8[Tensor, "h w 3"]:
    """The bytes of 8-bit RGB; `from_uint8` of them, channels first, is `to_tensor` of the image."""
    return torch.from_numpy(np.array(image))


def from_uint8(values: UInt8[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """0..255 to float32 in [-1, 1], laid out in memory as before."""
    return values.to(torch.float32).div_(127.5).sub_(1)


def to_uint8(images: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """[-1, 1] to 0..255: values outside are clamped, ties round to even."""
    return (images.float() + 1).mul_(127.5).clamp_(0, 255).round_().to(torch.uint8)  # in place: see `from_array`


def to_pil(image: Float[Tensor, "3 h w"]) -> Image.Image:
    """An image in [-1, 1], on any device, to 8-bit RGB.

    Raises:
        ImageError: If it holds NaN, which would turn black.
    """
    return from_array(image.detach().float().cpu().numpy())


def pad_to_multiple(images: Float[Tensor, "b c h w"], multiple: int) -> Float[Tensor, "b c ph pw"]:
    """Repeats the last row and column until both sides are multiples of `multiple`; `crop_to` undoes it."""
    height, width = images.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    return F.pad(images, (0, right, 0, bottom), mode="replicate") if bottom or right else images


def check_images(images: Float[Tensor, "b 3 H W"]) -> None:
    """Checks that something is a batch of images, of values that are finite and not far outside [-1, 1].

    Raises:
        ValueError: If it is not.
    """
    accepted = "Accepted: floats in [-1, 1] of shape (B, 3, H, W), none of them 0. Use stepladder.images.to_tensor."
    if not isinstance(images, Tensor):
        raise ValueError(f"Images are of type {type(images).__name__} and no tensor. {accepted}")
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point() or not images.numel():
        raise ValueError(f"Images have shape {tuple(images.shape)} and dtype {images.dtype}. {accepted}")
    low, high = torch.stack(images.aminmax()).tolist()
    if not -_FAR_OUTSIDE < low <= high < _FAR_OUTSIDE:
        raise ValueError(f"Images have values from {low:.3g} to {high:.3g}. {accepted}")


def crop_to(images: Float[Tensor, "b c ph pw"], size: tuple[int, int]) -> Float[Tensor, "b c h w"]:
    """The top left (H, W) of `images`."""
    return images[..., : size[0], : size[1]]


def to_png(image: Float[Tensor, "3 h w"]) -> bytes:
    """The bytes of a PNG of an image in [-1, 1]."""
    buffer = io.BytesIO()
    to_pil(image).save(buffer, format="PNG")
    return buffer.getvalue()
