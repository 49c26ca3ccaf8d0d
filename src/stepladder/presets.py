"""Named configurations of tokenizers, as functions: call one, replace what you like, build it."""

from dataclasses import replace

from stepladder.bottlenecks import PlainConfig
from stepladder.decoders import ConvDecoderConfig
from stepladder.encoders import ConvEncoderConfig
from stepladder.tokenizer import LadderConfig, TokenizerConfig

__all__ = ["PRESETS", "photo", "photo_base", "tiny"]


def photo() -> TokenizerConfig:
    """f8c16 for photographs of any size, K = 3."""
    return TokenizerConfig(
        latent_channels=16,
        encoder=ConvEncoderConfig(stride=8, width=64, depth=2, latent_depth=3),
        bottleneck=PlainConfig(),
        decoder=ConvDecoderConfig(),
        ladder=LadderConfig(num_stages=3),
        steps_per_stage=4,
    )


def photo_base() -> TokenizerConfig:
    """The ordinary diffusion decoder (K = 1) of the same encoder and network as `photo`."""
    return replace(photo(), ladder=LadderConfig(num_stages=1), steps_per_stage=8)


def tiny() -> TokenizerConfig:
    """A few thousand parameters in the shape of `photo`, for tests and rehearsals."""
    return TokenizerConfig(
        latent_channels=16,
        encoder=ConvEncoderConfig(stride=8, width=4, depth=1, latent_depth=1),
        bottleneck=PlainConfig(),
        decoder=ConvDecoderConfig(
            width=8,
            depth=1,
            coarse_width=8,
            coarse_depth=1,
            context_width=8,
            context_depth=1,
            head_width=4,
            embedding_width=16,
        ),
        ladder=LadderConfig(num_stages=3),
        steps_per_stage=2,
    )


PRESETS = {"photo": photo, "photo-base": photo_base, "tiny": tiny}
"""All presets by the names that configuration files use."""
