"""Decoders: networks on a ladder of stages."""

from stepladder.decoders.base import BoundNetwork, Context, DecoderNetwork, LadderDecoder
from stepladder.decoders.convolutional import ConvDecoder, ConvDecoderConfig
from stepladder.decoders.convolutional_stage import ConvStageConfig
from stepladder.decoders.mmdit import MMDiTDecoder, MMDiTDecoderConfig
from stepladder.errors import ConfigError
from stepladder.layouts import GridLayout, Layout, TokenLayout

__all__ = [
    "BoundNetwork",
    "Context",
    "ConvDecoder",
    "ConvDecoderConfig",
    "ConvStageConfig",
    "DecoderConfig",
    "DecoderNetwork",
    "LadderDecoder",
    "MMDiTDecoder",
    "MMDiTDecoderConfig",
    "build_network",
]

DecoderConfig = ConvDecoderConfig | MMDiTDecoderConfig


def build_network(config: DecoderConfig, layout: Layout) -> DecoderNetwork:
    """The network that a config describes, for latents of a layout.

    Raises:
        ConfigError: If it does not take such latents.
    """
    match config, layout:
        case ConvDecoderConfig(), GridLayout(channels, stride):
            return ConvDecoder(config, channels, stride)
        case MMDiTDecoderConfig(), TokenLayout():
            return MMDiTDecoder(config, layout)
    raise ConfigError(
        f"Decoder kind '{config.kind}' does not read a latent of {layout}. Accepted: 'conv' for grids, 'mmdit' for "
        "tokens. Take the kind of the encoder."
    )
