"""Configuration of the training of a prior, from a TOML file. Unknown keys are errors."""

import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from examples.generation.model import NetworkConfig
from stepladder.configs import structure
from stepladder.errors import ConfigError
from stepladder.losses import LocalTimes
from stepladder.training.config import OptimiserConfig

__all__ = ["TrainingConfig", "load_training_config"]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """A run."""

    steps: int
    """Optimiser steps."""
    batch_size: int = 128
    """Latents in each of them."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    """The transformer."""
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    """AdamW and its rates."""
    times: LocalTimes = field(default_factory=lambda: LocalTimes(distribution="lognormal"))
    """How times are drawn."""
    class_dropout: float = 0.1
    """Share of the classes that are left out."""
    ema_decay: float = 0.999
    """Decay of the moving average of the weights."""
    held_out: int = 1000
    """Images that are not trained on; the records say how well the averaged weights do on them."""
    seed: int = 0
    """Of initial weights, data order, noise and times."""
    log_every: int = 50
    """Steps between records."""
    save_every: int = 500
    """Steps between checkpoints, with the loss on the images held out."""
    keep_checkpoints: int = 2
    """How many stay."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "held_out", "log_every", "save_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} is less than 1. Pass 1 or more.")
        for name in ("class_dropout", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} is outside [0, 1). Usual: 0.1 and 0.999.")


def load_training_config(path: Path) -> TrainingConfig:
    """Reads a TOML file.

    Raises:
        ConfigError: If it cannot be read, or a key or value is not accepted.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"Cannot read config {path}: {error}. Pass a TOML file.") from error
    return structure(data, TrainingConfig, where=str(path))
