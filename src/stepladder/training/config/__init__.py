"""Configuration of a training run.

run        what every run has: optimiser, steps, records, images
recipes    what is learnt: `TrainConfig` and `DistillConfig`
files      TOML and JSON files, presets and `--set a.b=c`
starter    a commented file to begin with
"""

from stepladder.training.config.files import dump, load_config, load_distill_config
from stepladder.training.config.recipes import (
    AdversarialConfig,
    DistillConfig,
    LossConfig,
    RegressConfig,
    StartConfig,
    TrainConfig,
)
from stepladder.training.config.run import DataConfig, ImageRunConfig, OptimiserConfig, RunConfig

__all__ = [
    "AdversarialConfig",
    "DataConfig",
    "DistillConfig",
    "ImageRunConfig",
    "LossConfig",
    "OptimiserConfig",
    "RegressConfig",
    "RunConfig",
    "StartConfig",
    "TrainConfig",
    "dump",
    "load_config",
    "load_distill_config",
]
