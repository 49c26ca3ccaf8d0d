"""Bottlenecks: what happens to the encoder's features on their way to becoming a latent of unit scale."""

from stepladder.bottlenecks.base import Bottleneck, BottleneckOutput, LatentScale
from stepladder.bottlenecks.kl import GaussianPosterior, KLBottleneck, KLConfig
from stepladder.bottlenecks.plain import PlainBottleneck, PlainConfig

__all__ = [
    "Bottleneck",
    "BottleneckConfig",
    "BottleneckOutput",
    "GaussianPosterior",
    "KLBottleneck",
    "KLConfig",
    "LatentScale",
    "PlainBottleneck",
    "PlainConfig",
    "build_bottleneck",
]

BottleneckConfig = PlainConfig | KLConfig


def build_bottleneck(config: BottleneckConfig, channels: int) -> Bottleneck:
    """The bottleneck that a config describes, for latents of `channels` channels."""
    match config:
        case PlainConfig():
            return PlainBottleneck(config, channels)
        case KLConfig():
            return KLBottleneck(config, channels)
