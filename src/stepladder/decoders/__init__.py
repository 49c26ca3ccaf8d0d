"""Decoders: networks on a ladder of stages."""

from stepladder.decoders.base import BoundNetwork, Context, DecoderNetwork, LadderDecoder
from stepladder.decoders.convolutional import ConvDecoder, ConvDecoderConfig
from stepladder.decoders.mmdit import MMDiTDecoder, MMDiTDecoderConfig
from stepladder.decoders.stage_network import StageNetworkConfig
from stepladder.errors import ConfigError
from stepladder.layouts import GridLayout, Layout, TokenLayout

__all__ = [
    "BoundNetwork",
    "Context",
    "ConvDecoder",
    "ConvDecoderConfig",
    "DecoderConfig",
    "DecoderNetwork",
    "LadderDecoder",
    "MMDiTDecoder",
    "MMDiTDecoderConfig",
    "StageNetworkConfig",
    "build_network",
]

DecoderConfig = ConvDecoderConfig | MMDiTDecoderConfig


def build_network(config: DecoderConfig, layout: Layout, num_stages: int | None = None) -> DecoderNetwork:
    """The network that a config describes, for latents of a layout, and a number of stages or any (None).

    Raises:
        ConfigError: If it does not take such latents.
    """
    match config, layout:
        case ConvDecoderConfig(), GridLayout(channels, stride):
            return ConvDecoder(config, channels, stride, num_stages)
        case MMDiTDecoderConfig(), TokenLayout():
            return MMDiTDecoder(config, layout)
    raise ConfigError(
        f"Decoder kind '{config.kind}' does not read a latent of {layout}. Accepted: 'conv' for grids, 'mmdit' for "
        "tokens. Take the kind of the encoder."
    )
