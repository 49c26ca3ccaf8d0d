"""Configuration of the training of a prior, from a TOML file. Unknown keys are errors."""

import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from examples.generation.model import NetworkConfig
from stepladder.configs import structure
from stepladder.errors import ConfigError
from stepladder.losses import LocalTimes
from stepladder.training.config import RunConfig

__all__ = ["TrainingConfig", "load_training_config"]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(RunConfig):
    """What every run of the library has, and what this one learns."""

    batch_size: int = 128
    """Latents in a batch of one process."""
    log_every: int = 50
    """Steps between records."""
    names: list[str] = field(default_factory=list)
    """What the classes are called, in the order of their numbers; empty for none."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    """The transformer."""
    times: LocalTimes = field(default_factory=lambda: LocalTimes(distribution="logit-normal"))
    """How times are drawn."""
    class_dropout: float = 0.1
    """Share of the classes that are left out."""
    held_out: int = 1000
    """Images that are not trained on; beside every checkpoint, the records say how well the averaged weights do on
    them."""

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)
        if self.held_out < 1:
            raise ConfigError(f"held_out {self.held_out} is less than 1. Pass 1 or more.")
        if not 0 <= self.class_dropout < 1:
            raise ConfigError(f"class_dropout {self.class_dropout} is outside [0, 1). Usual: 0.1.")


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
