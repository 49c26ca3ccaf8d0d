"""Encoders: images to features at a fraction of their side."""

from stepladder.encoders.convolutional import ConvEncoder, ConvEncoderConfig

__all__ = ["ConvEncoder", "ConvEncoderConfig", "EncoderConfig", "build_encoder"]

EncoderConfig = ConvEncoderConfig


def build_encoder(config: EncoderConfig, out_channels: int) -> ConvEncoder:
    """The encoder that a config describes, delivering `out_channels` features."""
    match config:
        case ConvEncoderConfig():
            return ConvEncoder(config, out_channels)
