"""Initial weights of a run."""

import itertools
import logging
import math
from dataclasses import replace

import torch
from torch import Tensor

from stepladder.bottlenecks import KLBottleneck
from stepladder.data import CropConfig
from stepladder.decoders import ConvDecoderConfig
from stepladder.encoders import FrozenEncoder, FrozenEncoderConfig, same_encoder
from stepladder.encoders.linear import start_from_principal_components
from stepladder.errors import ConfigError
from stepladder.sampling.randomness import generator
from stepladder.tokenizer import Tokenizer
from stepladder.tokenizer_config import TokenizerConfig
from stepladder.training.batches import image_batches
from stepladder.training.config import TrainConfig
from stepladder.training.frozen import resume_frozen, start_frozen

__all__ = ["make_tokenizer", "rebuild_tokenizer"]

_log = logging.getLogger(__name__)

_PRINCIPAL_BATCH, _PRINCIPAL_BATCHES = 16, 16
_CELLS_FOR_EACH_VALUE = 100
"""So many cells at least as there are values in one, times this, are looked at: covariances are estimates."""
_NARROW_LOG_VARIANCE = -6.0


def make_tokenizer(config: TrainConfig) -> Tokenizer:
    """Builds the tokenizer of a run with the weights that it starts from; the same on every process.

    Raises:
        ConfigError: If a model to start from does not fit.
        CheckpointError: If it cannot be loaded.
    """
    tokenizer, start = _fresh(config), config.start
    if isinstance(config.tokenizer.encoder, FrozenEncoderConfig):
        start_frozen(tokenizer, config)
    if start.transfer_from is not None:
        _transfer(tokenizer, start.transfer_from)
    if start.principal_components:
        _start_from_principal_components(tokenizer, config)
    if start.encoder_from is not None:
        _take_encoder(tokenizer, start.encoder_from)
    if start.decoder_from is not None:
        other = Tokenizer.from_pretrained(start.decoder_from)
        if _decoder_settings(other.config) != _decoder_settings(config.tokenizer):
            raise ConfigError(
                f"start.decoder_from: the decoder of '{start.decoder_from}' has another configuration than this run. "
                "Copy its latent_channels, its encoder's layout of latents and its decoder settings to tokenizer."
            )
        # Settings are equal but for what stages hand on: a layer that receives it starts at zero, or is left out.
        own, taken = tokenizer.decoder.state_dict(), other.decoder.state_dict()
        tokenizer.decoder.load_state_dict({name: taken.get(name, value) for name, value in own.items()})
    return tokenizer


def rebuild_tokenizer(config: TrainConfig, stored: TokenizerConfig) -> Tokenizer:
    """Builds the tokenizer of a run that goes on: all of its weights come from the checkpoint, and none is sought here.

    Args:
        config: The run.
        stored: The tokenizer's configuration at the checkpoint; it says which frozen encoder is meant.

    Raises:
        ConfigError: If files hold latents of another frozen encoder.
        CheckpointError: If a frozen encoder is needed, and is not there or is another one.
    """
    tokenizer = _fresh(config)
    if isinstance(tokenizer.encoder, FrozenEncoder) and isinstance(stored.encoder, FrozenEncoderConfig):
        resume_frozen(tokenizer, config, stored.encoder)
    return tokenizer


def _fresh(config: TrainConfig) -> Tokenizer:
    with torch.random.fork_rng(devices=[]):
        # Layers draw their initial weights from the global generator; it is restored on the way out.
        torch.set_rng_state(generator(config.seed).get_state())
        return Tokenizer(config.tokenizer)


def _take_encoder(tokenizer: Tokenizer, name: str) -> None:
    """Takes encoder and bottleneck of a model; of a frozen encoder, the statistics of its latents."""
    other = Tokenizer.from_pretrained(name)
    if _encoder_settings(other.config) != _encoder_settings(tokenizer.config) or not same_encoder(
        other.config.encoder, tokenizer.config.encoder
    ):
        raise ConfigError(
            f"start.encoder_from: the encoder of '{name}' has another configuration than this run. "
            "Copy its latent_channels, encoder and bottleneck settings to tokenizer."
        )
    tokenizer.encoder.load_state_dict(other.encoder.state_dict())
    tokenizer.bottleneck.load_state_dict(other.bottleneck.state_dict())
    tokenizer.config = replace(tokenizer.config, encoder=other.config.encoder)


def _transfer(tokenizer: Tokenizer, name: str) -> None:
    """Takes the weights of encoder and decoder network that another model has in the same place and shape."""
    other = Tokenizer.from_pretrained(name).state_dict()
    own = {key: value for key, value in tokenizer.state_dict().items() if not key.startswith("bottleneck.")}
    taken = {key: other[key] for key, value in own.items() if key in other and other[key].shape == value.shape}
    if 2 * len(taken) < len(own):
        raise ConfigError(
            f"start.transfer_from: only {len(taken)} of {len(own)} weights have the same name and shape in '{name}'. "
            "Copy its encoder and decoder settings to tokenizer, all but those of the latent."
        )
    tokenizer.load_state_dict(taken, strict=False)
    fresh = sorted(own.keys() - taken.keys())
    _log.info("%d weights are those of %s; fresh: %s.", len(taken), name, ", ".join(fresh) or "none")


def _encoder_settings(config: TokenizerConfig) -> tuple[object, ...]:
    encoder = None if isinstance(config.encoder, FrozenEncoderConfig) else config.encoder
    return config.latent_channels, encoder, config.bottleneck


def _decoder_settings(config: TokenizerConfig) -> tuple[object, ...]:
    """All that shapes the network, but what its stages hand on; the ladder does not."""
    decoder = config.decoder
    if isinstance(decoder, ConvDecoderConfig):
        decoder = replace(decoder, hand_on_features=False)
    return config.layout, decoder


def _start_from_principal_components(tokenizer: Tokenizer, config: TrainConfig) -> None:
    """Makes encoder and initial estimate a linear block code of the training images."""
    linear, network = tokenizer.encoder.linear, tokenizer.decoder.network
    if linear is None or network.linear is None:
        raise ConfigError(
            "start.principal_components is true, and encoder or decoder has no linear part that can start from them. "
            "Accepted: kind 'conv', or 'mmdit' with linear = true in both. Set that, or principal_components to false."
        )
    size = config.data.crop.size
    data = replace(config.data, workers=0, latents=False)
    batches = image_batches(data, crop=CropConfig(size=size), batch_size=_PRINCIPAL_BATCH, seed=config.seed)()
    cell = linear.kernel_size[0] * linear.kernel_size[1]
    enough = math.ceil(_CELLS_FOR_EACH_VALUE * 3 * cell / (_PRINCIPAL_BATCH * (size**2 // cell)))
    images = []
    for batch in itertools.islice(batches, max(_PRINCIPAL_BATCHES, enough)):
        assert isinstance(batch, Tensor)
        images.append(batch)
    channels = config.tokenizer.latent_channels
    synthesis, mean = start_from_principal_components(linear, torch.cat(images), channels)
    if isinstance(tokenizer.bottleneck, KLBottleneck):
        # Beside components of unit variance, let the posterior start narrow: the rest of the features is log sigma^2.
        assert linear.bias is not None
        with torch.no_grad():
            linear.bias[channels:].fill_(_NARROW_LOG_VARIANCE)
    tokenizer.bottleneck.scale.trust()  # whitened components have unit scale
    network.start_from_synthesis(synthesis, mean)
