"""What a run on a frozen encoder starts from: the statistics of its latents, and its fingerprint."""

import itertools
from dataclasses import replace

import torch
from torch import Tensor

from stepladder.bottlenecks import PlainBottleneck
from stepladder.data import open_pairs, open_source, training_loader
from stepladder.encoders import FrozenEncoder, FrozenEncoderConfig
from stepladder.encoders.fingerprint import TOLERANCE, distance
from stepladder.encoders.frozen import kept
from stepladder.errors import ConfigError
from stepladder.tokenizer import Tokenizer
from stepladder.training.coding import raw_latents
from stepladder.training.config import DataConfig, ImageRunConfig, TrainConfig

__all__ = ["fingerprint_of_files", "resume_frozen", "start_frozen"]

_BATCH, _BATCHES = 8, 32


def start_frozen(tokenizer: Tokenizer, config: TrainConfig) -> None:
    """Measures mean and deviation of each channel of the raw latents, unless a model brings them, and the fingerprint.

    Raises:
        ConfigError: If the bottleneck is not plain, or the files hold latents of another encoder.
        CheckpointError: If the encoder is needed, and is not there.
    """
    encoder = tokenizer.encoder
    assert isinstance(encoder, FrozenEncoder)
    if not isinstance(tokenizer.bottleneck, PlainBottleneck):
        raise ConfigError(
            f"Bottleneck '{tokenizer.config.bottleneck.kind}' does not fit a frozen encoder, whose latents are what "
            "they are. Accepted: 'plain'. Set tokenizer.bottleneck.kind to it."
        )
    fingerprint = fingerprint_of_files(encoder, config) if config.data.latents else encoder.measure_fingerprint()
    named = kept(encoder, fingerprint)
    encoder.config = replace(encoder.config, fingerprint=fingerprint)
    tokenizer.config = replace(tokenizer.config, encoder=named)
    if config.start.encoder_from is None:
        _measure_scale(tokenizer, config)


def resume_frozen(tokenizer: Tokenizer, config: TrainConfig, stored: FrozenEncoderConfig) -> None:
    """Takes the fingerprint of a checkpoint, whose weights hold the scale, and checks encoder or files against it.

    Raises:
        ConfigError: If the files hold latents of another encoder.
        CheckpointError: If the encoder is needed, and is not there or is another one.
    """
    encoder = tokenizer.encoder
    assert isinstance(encoder, FrozenEncoder)
    encoder.config = replace(encoder.config, fingerprint=stored.fingerprint)
    tokenizer.config = replace(tokenizer.config, encoder=stored)
    if config.data.latents:
        fingerprint_of_files(encoder, config)
    else:
        encoder.open()


def fingerprint_of_files(encoder: FrozenEncoder, config: ImageRunConfig) -> list[float] | None:
    """The fingerprint that the files of a run with latents have in common; that of the encoder where they say none.

    Raises:
        ConfigError: If they hold latents of two encoders, or of another one than `encoder`.
    """
    data = config.data
    found = open_pairs(data.train).fingerprints
    if data.validation and config.grid_every:
        found = found | open_pairs(data.validation).fingerprints
    known = encoder.config.fingerprint
    if not found:
        return known
    first = next(iter(found))
    named, expected = (f"'{first}'", found[first]) if known is None else (f"'{encoder.config.source}'", known)
    for file, fingerprint in found.items():
        if not (off := distance(fingerprint, expected)) <= TOLERANCE:
            channels = f"has {len(fingerprint)} channels instead of {len(expected)}"
            how = f"differs by {off:.0%}" if len(fingerprint) == len(expected) else channels
            raise ConfigError(
                f"'{file}' holds latents of another encoder than {named}: that of the test image {how}. Accepted: up "
                f"to {TOLERANCE:.0%}. Name files that one encoder made in data.train and data.validation."
            )
    return found[first]


def _measure_scale(tokenizer: Tokenizer, config: TrainConfig) -> None:
    """Sets the scale of the bottleneck to the statistics of raw latents of the first crops of the run."""
    data, stride = config.data, tokenizer.layout.side_multiple
    source = open_pairs(data.train) if data.latents else open_source(data.train)
    batches = training_loader(source, crop=data.crop, batch_size=_batch_size(data), seed=config.seed, stride=stride)
    raw = [_by_channel(raw_latents(tokenizer, batch)) for batch in itertools.islice(batches, _BATCHES)]
    values = torch.cat(raw, dim=1)  # (c, n)
    channels = tokenizer.config.latent_channels
    if values.shape[0] != channels:
        raise ConfigError(
            f"Latents in data.train have {values.shape[0]} channels. tokenizer.latent_channels is {channels}. Set it "
            "to the number of the latents."
        )
    scale = tokenizer.bottleneck.scale
    with torch.no_grad():
        scale.mean.copy_(values.mean(1))
        scale.variance.copy_(values.var(1, unbiased=False))
    scale.trust()


def _batch_size(data: DataConfig) -> int:
    """The least number of whole photographs that is large enough."""
    crops = data.crop.crops_per_image
    return -(-_BATCH // crops) * crops


def _by_channel(raw: Tensor) -> Tensor:
    return raw.double().transpose(0, 1).flatten(1)
