"""The configuration of every run: optimiser, steps, records, and data of a run on images."""

import math
from dataclasses import dataclass, field
from typing import Literal

from stepladder.bounds import MAX_BATCH, MAX_SIDE
from stepladder.data import CropConfig, StreamConfig
from stepladder.data.remote import is_remote
from stepladder.errors import ConfigError
from stepladder.training.config.checks import check_at_least, check_pixels

__all__ = ["DataConfig", "ImageRunConfig", "OptimiserConfig", "RunConfig"]

_MAX_WORKERS = 1024


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """AdamW with linear warm-up, a constant rate, and a decay to zero at the end."""

    learning_rate: float = 5e-4
    """Peak rate."""
    linear_rate_scale: float | None = None
    """Scale of the learning rate of the linear parts of encoder and decoder. By default 0.03 in a run that starts from
    principal components (they start close to their optimum, and Adam's steps are large compared to their small
    weights), else 1."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    schedule: Literal["linear", "cosine"] = "linear"
    """Shape of the decay."""
    decay_fraction: float = 0.3
    """Share of the run, at its end, over which the rate falls to zero; 1 for all of it."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decays of the moments."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    clip_norm: float = 1.0
    """Largest norm of the gradient; larger ones are scaled to it."""

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"Learning rate {self.learning_rate} is not positive. Usual values: 1e-4 to 1e-3.")
        if not 0 <= self.decay_fraction <= 1:
            raise ConfigError(f"Decay fraction {self.decay_fraction} is outside [0, 1]. Usual values: 0.1 to 0.5.")
        if not self.clip_norm > 0:
            raise ConfigError(f"Clip norm {self.clip_norm} is not positive. Usual value: 1.0.")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"Betas {list(self.betas)} are not in [0, 1). Usual values: [0.9, 0.99].")
        check_at_least(self, 0, "warmup_steps", "weight_decay", where="optimiser")
        if self.linear_rate_scale is not None:
            check_at_least(self, 0, "linear_rate_scale", where="optimiser")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every run has, whatever it trains."""

    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    """Optimiser."""
    steps: int = 10_000
    """Optimiser steps of the whole run."""
    batch_size: int = 16
    """Images, or other items, in a batch of one process."""
    accumulate: int = 1
    """Batches for one optimiser step."""
    ema_decay: float = 0.999
    """Decay d of the moving average of the weights; it warms up as min(d, (1+n)/(10+n))."""
    precision: Literal["no", "bf16", "auto"] = "no"
    """Autocast of the forward pass: none (float32), bfloat16, or auto for bfloat16 where the device is fast in it."""
    compile: bool = False
    """Compile the networks before training."""
    shard: bool = False
    """Divide weights, gradients, moments and averages over the processes (FSDP2), for models that do not fit one."""
    gradient_checkpointing: bool = False
    """Recompute activations inside the blocks of a network for gradients: less memory, a third more computation."""
    seed: int = 0
    """Seed of initial weights, data order, crops, noise and times."""
    log_every: int = 10
    """Steps between records."""
    save_every: int = 500
    """Steps between checkpoints; one is always written at the end."""
    keep_checkpoints: int = 2
    """How many checkpoints stay in the run folder."""
    tracker: Literal["tensorboard", "wandb"] | None = None
    """Where records go beside `records.jsonl`: TensorBoard, Weights & Biases, or nowhere else."""

    def __post_init__(self) -> None:
        check_at_least(self, 1, "batch_size", "accumulate", most=MAX_BATCH)
        check_at_least(self, 1, "steps", "log_every", "save_every", "keep_checkpoints")
        check_at_least(self, 0, "seed")
        if self.shard and self.compile:
            raise ConfigError(
                "shard and compile are both true, and networks that gather their weights are not compiled. Set one of "
                "them to false."
            )
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay {self.ema_decay} is outside [0, 1). Usual values: 0.99 to 0.9999.")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where images come from."""

    train: list[str] = field(default_factory=list)
    """Folders, `.tar` shards, Parquet files (globs allowed) or one hub id; URLs of shards, with `stream`."""
    latents: bool = False
    """Whether these files hold a latent with each image, as `stepladder cache` writes them, so that nothing is encoded.
    Crops are windows of whole latent cells, neither resized nor mirrored."""
    validation: list[str] = field(default_factory=list)
    """Images of the grids and of the PSNR in the records; empty for none."""
    validation_images: int = 8
    """How many of them are used."""
    validation_size: int | None = None
    """Side to which they are cropped; by default the one side that the model takes, or 256 if it takes any."""
    crop: CropConfig = field(default_factory=CropConfig)
    """Random crops."""
    stream: StreamConfig | None = None
    """Read shards from front to back instead of at random: for data that is remote or larger than the disk."""
    workers: int = 0
    """Loader processes for each training process; 0 loads in the process itself."""

    def __post_init__(self) -> None:
        check_at_least(self, 0, "workers", where="data", most=_MAX_WORKERS)
        check_at_least(self, 1, "validation_images", where="data", most=MAX_BATCH)
        if self.validation_size is not None:
            check_at_least(self, 1, "validation_size", where="data", most=MAX_SIDE)
            names = ("data.validation_images", "data.validation_size")
            check_pixels(self.validation_images, self.validation_size, names=names)
        if self.latents and self.stream is not None:
            raise ConfigError(
                "data.latents is true, and data.stream is set. Latents beside images are read at random. Leave out one."
            )
        remote = next((entry for entry in self.train if is_remote(entry)), None)
        if remote is not None and self.stream is None:
            raise ConfigError(
                f"data.train names '{remote}', which is remote, and data.stream is not set. Remote data is streamed. "
                "Set data.stream.lanes, for example to 8."
            )


@dataclass(frozen=True, kw_only=True)
class ImageRunConfig(RunConfig):
    """What every run on images has; `TrainConfig` and `DistillConfig` add what is learnt."""

    data: DataConfig
    """Images."""
    grid_every: int = 500
    """Steps between grids of reconstructions and validation records; 0 for none."""

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)
        check_pixels(self.batch_size, self.data.crop.size, names=("batch_size", "data.crop.size"))
        check_at_least(self, 0, "grid_every")
        if not self.data.train:
            raise ConfigError(
                "data.train is empty. Name folders, tar shards or Parquet files: --set 'data.train=[\"DIR\"]'."
            )
