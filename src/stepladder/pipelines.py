"""Latents of a frozen encoder in three scales: raw, as a diffusion pipeline has them, and of unit scale.

    pipeline --encoder--> raw --bottleneck--> unit, which a model decodes

`encoders.scale` says how they differ.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from stepladder.encoders import FrozenEncoder
from stepladder.encoders.scale import LatentSpace
from stepladder.errors import ConfigError
from stepladder.tokenizer import Tokenizer

__all__ = ["decodable", "foreign_latents", "unit_latents"]


@torch.no_grad()
def unit_latents(
    tokenizer: Tokenizer, latent: Float[Tensor, "b p y x"], *, space: LatentSpace = "raw"
) -> Float[Tensor, "b c h w"]:
    """Latents that a model decodes, of those that its frozen encoder or a diffusion pipeline made.

    Args:
        tokenizer: The model.
        latent: Of the encoder ("raw"), or as a diffusion model makes them ("pipeline"), packed there or not.
        space: Which of them.

    Raises:
        ConfigError: If the model holds its own encoder, does not know how pipelines scale its latents, or they have
            another number of channels.
    """
    raw = _frozen(tokenizer).raw(latent, space)
    unit: Tensor = tokenizer.bottleneck(raw).latent
    return unit


def decodable(tokenizer: Tokenizer, latent: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Raw latents of a frozen encoder at unit scale; those of an encoder that is part of the model have it already."""
    return unit_latents(tokenizer, latent) if isinstance(tokenizer.encoder, FrozenEncoder) else latent


@torch.no_grad()
def foreign_latents(
    tokenizer: Tokenizer, latent: Float[Tensor, "b c h w"], *, space: LatentSpace = "raw"
) -> Float[Tensor, "b p y x"]:
    """The inverse of `unit_latents`; for a pipeline packed where it packs."""
    return _frozen(tokenizer).foreign(tokenizer.bottleneck.scale.inverse(latent), space)


def _frozen(tokenizer: Tokenizer) -> FrozenEncoder:
    if not isinstance(tokenizer.encoder, FrozenEncoder):
        raise ConfigError(
            f"Encoder '{tokenizer.config.encoder.kind}' is part of the model, and its latents have unit scale. Decode "
            "them as they are, with Tokenizer.decode; the command takes files of 'stepladder encode'."
        )
    return tokenizer.encoder
