"""Initial weights of a run."""

import torch

from stepladder.bottlenecks import KLBottleneck
from stepladder.data import CropConfig, open_source, training_loader
from stepladder.errors import ConfigError
from stepladder.randomness import generator
from stepladder.tokenizer import Tokenizer, TokenizerConfig
from stepladder.training.config import TrainConfig

__all__ = ["make_tokenizer"]

_PRINCIPAL_BATCH, _PRINCIPAL_BATCHES = 16, 16
_NARROW_LOG_VARIANCE = -6.0


def make_tokenizer(config: TrainConfig) -> Tokenizer:
    """Builds the tokenizer of a run with the weights that it starts from; the same on every process.

    Raises:
        ConfigError: If a model to start from does not fit.
        CheckpointError: If it cannot be loaded.
    """
    with torch.random.fork_rng(devices=[]):
        # Layers draw their initial weights from the global generator; it is restored on the way out.
        torch.set_rng_state(generator(config.seed).get_state())
        tokenizer = Tokenizer(config.tokenizer)
    start = config.start
    if start.principal_components:
        _start_from_principal_components(tokenizer, config)
    if start.encoder_from is not None:
        other = Tokenizer.from_pretrained(start.encoder_from)
        if _encoder_settings(other.config) != _encoder_settings(config.tokenizer):
            raise ConfigError(
                f"start.encoder_from: the encoder of '{start.encoder_from}' has another configuration than this run. "
                "Copy its latent_channels, encoder and bottleneck settings to tokenizer."
            )
        tokenizer.encoder.load_state_dict(other.encoder.state_dict())
        tokenizer.bottleneck.load_state_dict(other.bottleneck.state_dict())
    if start.decoder_from is not None:
        other = Tokenizer.from_pretrained(start.decoder_from)
        if _decoder_settings(other.config) != _decoder_settings(config.tokenizer):
            raise ConfigError(
                f"start.decoder_from: the decoder of '{start.decoder_from}' has another configuration than this run. "
                "Copy its latent_channels, encoder.stride and decoder settings to tokenizer."
            )
        tokenizer.decoder.load_state_dict(other.decoder.state_dict())
    return tokenizer


def _encoder_settings(config: TokenizerConfig) -> tuple[object, ...]:
    return config.latent_channels, config.encoder, config.bottleneck


def _decoder_settings(config: TokenizerConfig) -> tuple[object, ...]:
    """All that shapes the network; the ladder does not."""
    return config.latent_channels, config.encoder.stride, config.decoder


def _start_from_principal_components(tokenizer: Tokenizer, config: TrainConfig) -> None:
    """Makes encoder and draft a linear block code of the training images."""
    size = config.data.crop.size
    source = open_source(config.data.train)
    batches = training_loader(source, crop=CropConfig(size=size), batch_size=_PRINCIPAL_BATCH, seed=config.seed)
    images = torch.cat([next(batches) for _ in range(_PRINCIPAL_BATCHES)])
    channels = config.tokenizer.latent_channels
    synthesis, mean = tokenizer.encoder.start_from_principal_components(images, channels)
    if isinstance(tokenizer.bottleneck, KLBottleneck):
        # Beside components of unit variance, let the posterior start narrow: the rest of the features is log sigma^2.
        assert tokenizer.encoder.linear.bias is not None
        with torch.no_grad():
            tokenizer.encoder.linear.bias[channels:].fill_(_NARROW_LOG_VARIANCE)
    tokenizer.bottleneck.scale.trust()  # whitened components have unit scale
    tokenizer.decoder.network.reader.start_from_synthesis(synthesis, mean)
