"""Named configurations of tokenizers, as functions: call one, replace what you like, build it."""

from dataclasses import replace

from stepladder.bottlenecks import PlainConfig
from stepladder.decoders import ConvDecoderConfig, MMDiTDecoderConfig
from stepladder.encoders import ConvEncoderConfig, MMDiTEncoderConfig
from stepladder.tokenizer_config import LadderConfig, TokenizerConfig

__all__ = [
    "PRESETS",
    "imagenet64",
    "imagenet64_base",
    "paper_256_p8",
    "paper_256_p16",
    "paper_512_p8",
    "paper_base_256_p16",
    "photo",
    "photo_base",
    "photo_f16",
    "photo_f16_base",
    "tiny",
    "tiny_tokens",
]


def photo() -> TokenizerConfig:
    """f8c16 for photographs of any size, K = 3."""
    return TokenizerConfig(
        latent_channels=16,
        encoder=ConvEncoderConfig(stride=8, width=64, depth=2, latent_depth=3),
        bottleneck=PlainConfig(),
        decoder=ConvDecoderConfig(hand_on_features=True),
        ladder=LadderConfig(num_stages=3, ends=[0.024, 0.02, 0.0], residuals=[0.019, 0.038, 0.083]),
        steps_per_stage=4,
    )


def photo_base() -> TokenizerConfig:
    """The ordinary diffusion decoder (K = 1) of the same encoder and network as `photo`."""
    ladder = LadderConfig(num_stages=1, residuals=[0.083])
    return replace(photo(), decoder=ConvDecoderConfig(), ladder=ladder, steps_per_stage=8)


def photo_f16() -> TokenizerConfig:
    """f16c16 for photographs of any size, K = 3: a latent at the rate of the paper, a forty-eighth of the numbers."""
    return TokenizerConfig(
        latent_channels=16,
        encoder=ConvEncoderConfig(stride=16, width=64, depth=2, latent_depth=4),
        bottleneck=PlainConfig(),
        decoder=ConvDecoderConfig(context_width=160, context_depth=3, hand_on_features=True),
        ladder=LadderConfig(num_stages=3, ends=[0.13, 0.088, 0.0], residuals=[0.05, 0.097, 0.129]),
        steps_per_stage=4,
    )


def photo_f16_base() -> TokenizerConfig:
    """The ordinary diffusion decoder (K = 1) of the same encoder and network as `photo_f16`."""
    decoder = ConvDecoderConfig(context_width=160, context_depth=3)
    ladder = LadderConfig(num_stages=1, residuals=[0.129])
    return replace(photo_f16(), decoder=decoder, ladder=ladder, steps_per_stage=8)


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


def paper_256_p16() -> TokenizerConfig:
    """The main configuration of arXiv 2603.19570: 128 tokens of 32 for 256 x 256, K = 3 (64 to 256), patches of 16."""
    return _paper(side=256, patch=16, num_stages=3)


def paper_256_p8() -> TokenizerConfig:
    """As `paper_256_p16` with patches of 8 and K = 4 (32 to 256)."""
    return _paper(side=256, patch=8, num_stages=4)


def paper_512_p8() -> TokenizerConfig:
    """As `paper_256_p8` for 512 x 512 (64 to 512)."""
    return _paper(side=512, patch=8, num_stages=4)


def paper_base_256_p16() -> TokenizerConfig:
    """The ordinary diffusion decoder (K = 1) of `paper_256_p16`."""
    return _paper(side=256, patch=16, num_stages=1)


def imagenet64() -> TokenizerConfig:
    """The paper's architecture at a size that CPUs train: 32 tokens of 32 for 64 x 64, K = 3 (16 to 64), patches of 8.

    Unlike in the paper, latent tokens are spread over the image and start as a linear code of its cells, stages see the
    clean image of the one before, and a thin convolutional head draws across the borders of patches.
    """
    return TokenizerConfig(
        latent_channels=32,
        encoder=MMDiTEncoderConfig(
            image_side=64, patch=8, tokens=32, width=192, depth=3, heads=4, latent_positions="grid", linear=True
        ),
        bottleneck=PlainConfig(),
        decoder=MMDiTDecoderConfig(
            patch=8, width=192, depth=4, heads=4, latent_positions="grid", head_width=8, previous=True, linear=True
        ),
        ladder=LadderConfig(num_stages=3),
        steps_per_stage=4,
    )


def imagenet64_base() -> TokenizerConfig:
    """The ordinary diffusion decoder (K = 1) of `imagenet64`."""
    return replace(imagenet64(), ladder=LadderConfig(num_stages=1), steps_per_stage=8)


def tiny_tokens() -> TokenizerConfig:
    """A few thousand parameters in the shape of `imagenet64`, for tests and rehearsals."""
    return TokenizerConfig(
        latent_channels=4,
        encoder=MMDiTEncoderConfig(image_side=32, patch=8, tokens=6, width=16, depth=2, heads=2),
        bottleneck=PlainConfig(),
        decoder=MMDiTDecoderConfig(patch=8, width=16, depth=2, heads=2, null_latent=True),
        ladder=LadderConfig(num_stages=3),
        steps_per_stage=2,
    )


def _paper(*, side: int, patch: int, num_stages: int) -> TokenizerConfig:
    """128 tokens of 32; encoder and decoder with 12 layers of 768 features and 12 heads."""
    return TokenizerConfig(
        latent_channels=32,
        encoder=MMDiTEncoderConfig(image_side=side, patch=patch),
        bottleneck=PlainConfig(),
        decoder=MMDiTDecoderConfig(patch=patch, null_latent=True),
        ladder=LadderConfig(num_stages=num_stages),
        steps_per_stage=50,
    )


PRESETS = {
    "photo": photo,
    "photo-base": photo_base,
    "photo-f16": photo_f16,
    "photo-f16-base": photo_f16_base,
    "imagenet64": imagenet64,
    "imagenet64-base": imagenet64_base,
    "paper-256-p16": paper_256_p16,
    "paper-256-p8": paper_256_p8,
    "paper-512-p8": paper_512_p8,
    "paper-base-256-p16": paper_base_256_p16,
    "tiny": tiny,
    "tiny-tokens": tiny_tokens,
}
"""All presets by the names that configuration files use."""
