"""Decoders: a network, what it predicts, and the ladder that it climbs."""

from stepladder.decoders.convolutional import ConvDecoder, ConvDecoderConfig
from stepladder.decoders.ladder import Context, DecoderNetwork, LadderDecoder, Prediction

__all__ = [
    "Context",
    "ConvDecoder",
    "ConvDecoderConfig",
    "DecoderConfig",
    "DecoderNetwork",
    "LadderDecoder",
    "Prediction",
    "build_network",
]

DecoderConfig = ConvDecoderConfig


def build_network(config: DecoderConfig, latent_channels: int, stride: int) -> ConvDecoder:
    """The network that a config describes, for latents of `latent_channels` at 1/stride of the image side."""
    match config:
        case ConvDecoderConfig():
            return ConvDecoder(config, latent_channels, stride)
