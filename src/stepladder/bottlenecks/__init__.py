"""Bottlenecks: they turn the features of an encoder into a latent of unit scale."""

from stepladder.bottlenecks.base import Bottleneck, BottleneckOutput, LatentScale, channel_dim
from stepladder.bottlenecks.fsq import FSQBottleneck, FSQConfig
from stepladder.bottlenecks.kl import KLBottleneck, KLConfig
from stepladder.bottlenecks.plain import PlainBottleneck, PlainConfig
from stepladder.bottlenecks.posterior import GaussianPosterior
from stepladder.bottlenecks.vq import VQBottleneck, VQConfig

__all__ = [
    "Bottleneck",
    "BottleneckConfig",
    "BottleneckOutput",
    "FSQBottleneck",
    "FSQConfig",
    "GaussianPosterior",
    "KLBottleneck",
    "KLConfig",
    "LatentScale",
    "PlainBottleneck",
    "PlainConfig",
    "VQBottleneck",
    "VQConfig",
    "build_bottleneck",
    "channel_dim",
]

BottleneckConfig = PlainConfig | KLConfig | FSQConfig | VQConfig


def build_bottleneck(config: BottleneckConfig, channels: int) -> Bottleneck:
    """The bottleneck that a config describes, for latents of `channels` channels.

    Raises:
        ConfigError: If it cannot have that many channels.
    """
    match config:
        case PlainConfig():
            return PlainBottleneck(config, channels)
        case KLConfig():
            return KLBottleneck(config, channels)
        case FSQConfig():
            return FSQBottleneck(config, channels)
        case VQConfig():
            return VQBottleneck(config, channels)
