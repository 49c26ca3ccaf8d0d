"""Encoders: from images to features, which a bottleneck turns into a latent."""

from typing import TypeAlias

from jaxtyping import Float
from torch import Tensor

from stepladder.encoders.convolutional import ConvEncoder, ConvEncoderConfig
from stepladder.encoders.frozen import (
    DiffusersEncoderConfig,
    FrozenEncoder,
    FrozenEncoderConfig,
    LatentFilesConfig,
    OnnxEncoderConfig,
    open_encoders,
    same_encoder,
)
from stepladder.encoders.mmdit import MMDiTEncoder, MMDiTEncoderConfig
from stepladder.layouts import GridLayout, Layout, TokenLayout
from stepladder.sampling.tiling import in_tiles

__all__ = [
    "ConvEncoder",
    "ConvEncoderConfig",
    "DiffusersEncoderConfig",
    "Encoder",
    "EncoderConfig",
    "FrozenEncoder",
    "FrozenEncoderConfig",
    "LatentFilesConfig",
    "MMDiTEncoder",
    "MMDiTEncoderConfig",
    "OnnxEncoderConfig",
    "build_encoder",
    "features",
    "latent_layout",
    "open_encoders",
    "same_encoder",
]

EncoderConfig = ConvEncoderConfig | MMDiTEncoderConfig | OnnxEncoderConfig | DiffusersEncoderConfig | LatentFilesConfig

Encoder: TypeAlias = ConvEncoder | MMDiTEncoder | FrozenEncoder


def build_encoder(config: EncoderConfig, out_channels: int) -> Encoder:
    """The encoder that a config describes, delivering `out_channels` features."""
    match config:
        case ConvEncoderConfig():
            return ConvEncoder(config, out_channels)
        case MMDiTEncoderConfig():
            return MMDiTEncoder(config, out_channels)
        case _:
            return FrozenEncoder(config, out_channels)


def latent_layout(config: EncoderConfig, channels: int) -> Layout:
    """The layout of latents of `channels` channels from an encoder."""
    match config:
        case ConvEncoderConfig():
            return GridLayout(channels, config.stride)
        case MMDiTEncoderConfig():
            return TokenLayout(config.tokens, channels, config.image_side)
        case _:
            return GridLayout(channels, config.stride)


def features(encoder: Encoder, images: Float[Tensor, "b 3 H W"], *, tile: int) -> Float[Tensor, "b ..."]:
    """Features of images; larger images are encoded in tiles, each with its whole receptive field.

    Args:
        encoder: Of any kind; one that needs the whole image gets it.
        images: In [-1, 1], of sides that fit.
        tile: Side of the tiles for longer sides; 0 for none.
    """
    if not tile or encoder.reach is None or max(images.shape[2:]) <= tile:
        found: Tensor = encoder(images)
        return found
    (whole,) = in_tiles(lambda part: [encoder(part)], images, side=tile, margin=encoder.reach)
    return whole
