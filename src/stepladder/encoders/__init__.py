"""Encoders: images to the features of which a bottleneck makes a latent."""

from stepladder.encoders.convolutional import ConvEncoder, ConvEncoderConfig
from stepladder.encoders.mmdit import MMDiTEncoder, MMDiTEncoderConfig
from stepladder.layouts import GridLayout, Layout, TokenLayout

__all__ = [
    "ConvEncoder",
    "ConvEncoderConfig",
    "EncoderConfig",
    "MMDiTEncoder",
    "MMDiTEncoderConfig",
    "build_encoder",
    "latent_layout",
]

EncoderConfig = ConvEncoderConfig | MMDiTEncoderConfig


def build_encoder(config: EncoderConfig, out_channels: int) -> ConvEncoder | MMDiTEncoder:
    """The encoder that a config describes, delivering `out_channels` features."""
    match config:
        case ConvEncoderConfig():
            return ConvEncoder(config, out_channels)
        case MMDiTEncoderConfig():
            return MMDiTEncoder(config, out_channels)


def latent_layout(config: EncoderConfig, channels: int) -> Layout:
    """How the latents of `channels` channels are laid out that the encoder leads to."""
    match config:
        case ConvEncoderConfig():
            return GridLayout(channels, config.stride)
        case MMDiTEncoderConfig():
            return TokenLayout(config.tokens, channels, config.image_side)
