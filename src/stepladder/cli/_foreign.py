"""Latents of a frozen encoder in a .npy file, as the content of a latent file."""

from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

from stepladder.data.npy import read_latent_array
from stepladder.encoders.scale import LatentSpace
from stepladder.errors import ConfigError
from stepladder.latents import LatentFile, StoredLatent
from stepladder.pipelines import unit_latents
from stepladder.tokenizer import Tokenizer

__all__ = ["of_model", "read_foreign"]


def read_foreign(path: Path, model: str | None, origin: str) -> LatentFile:
    """What the file holds, before it is clear what the model makes of it: NAME.npy, or NAME-0000, NAME-0001, ...

    Raises:
        ConfigError: If no model is named, or the origin is unknown.
        DataError: If it cannot be read.
    """
    if origin not in ("raw", "pipeline"):
        raise ConfigError(f"--from {origin} is unknown. Accepted: raw, pipeline. Choose one of them.")
    if model is None:
        raise ConfigError(
            f"--from is given without --model: {path.name} does not say what decodes it. Add --model MODEL."
        )
    latents = read_latent_array(path)
    names = [path.stem] if len(latents) == 1 else [f"{path.stem}-{place:04}" for place in range(len(latents))]
    stored = [StoredLatent(name=name, values=values, size=(1, 1)) for name, values in zip(names, latents, strict=True)]
    return LatentFile(model=model, fingerprint="", latents=tuple(stored))


def of_model(content: LatentFile, tokenizer: Tokenizer, origin: str) -> LatentFile:
    """The same as latents of unit scale of a model, each of all that it covers."""
    together = torch.stack([stored.values for stored in content.latents]).to(tokenizer.device)
    latents = unit_latents(tokenizer, together, space=cast(LatentSpace, origin))
    size = tokenizer.layout.covers(latents)
    stored = [replace(old, values=values, size=size) for old, values in zip(content.latents, latents, strict=True)]
    return replace(content, fingerprint=tokenizer.fingerprint(), latents=tuple(stored))
