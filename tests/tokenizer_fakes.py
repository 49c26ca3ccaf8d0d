"""Tiny tokenizers on grids of latents, and images for them."""

from dataclasses import replace

import torch
from torch import Tensor

from stepladder import Tokenizer, presets
from stepladder.bottlenecks import BottleneckConfig, KLConfig, PlainConfig, VQConfig
from stepladder.encoders import ConvEncoderConfig
from stepladder.sampling.randomness import generator
from stepladder.tokenizer_config import LadderConfig, TokenizerConfig

F8, F4 = presets.tiny().encoder, ConvEncoderConfig(stride=4, width=4, depth=0, latent_depth=1)
PLAIN, KL = PlainConfig(), KLConfig(weight=0.1)


def grid(
    num_stages: int = 3,
    encoder: ConvEncoderConfig = F8,
    bottleneck: BottleneckConfig = PLAIN,
    *,
    channels: int = 16,
    prediction: str = "clean",
    estimate_depth: int = 0,
) -> TokenizerConfig:
    tiny = presets.tiny()
    return replace(
        tiny,
        latent_channels=channels,
        encoder=encoder,
        bottleneck=bottleneck,
        decoder=replace(tiny.decoder, prediction=prediction, estimate_width=12, estimate_depth=estimate_depth),
        ladder=LadderConfig(num_stages=num_stages),
    )


def built(config: TokenizerConfig) -> Tokenizer:
    """A tokenizer that has moved away from its initial weights: layers that start at zero hide what is behind them.

    The weights are the same for every ladder and prediction.
    """
    tokenizer = Tokenizer(config)
    draw = generator(0)
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            fan_in = max(1, parameter[0].numel())
            parameter.normal_(0, 0.7 * fan_in**-0.5, generator=draw)
        for name, parameter in tokenizer.named_parameters():
            if name.endswith("gain"):
                parameter.fill_(1)
    if isinstance(config.bottleneck, VQConfig):
        tokenizer.bottleneck.codebook.normal_(generator=draw)
    tokenizer.bottleneck(tokenizer.encoder(pictures(32, 32)), draw)  # measures the scale of the features
    return tokenizer.eval()


def pictures(*size: int, count: int = 2) -> Tensor:
    return torch.rand(count, 3, *size, generator=generator(1)) * 2 - 1
