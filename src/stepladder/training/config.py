"""Configuration of a training run: preset, then file, then `--set a.b=c`.

A file is TOML or JSON. For `stepladder train`, `preset` names the tokenizer to start from; the keys under `tokenizer`
change it. Every key is checked; the resolved configuration is printed by `--dry-run` and saved beside the run, and is
itself a valid file.
"""

import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from stepladder.configs import structure, unstructure
from stepladder.data import CropConfig
from stepladder.errors import ConfigError
from stepladder.losses import FlowTarget, FlowWeighting, TimeDistribution, check_teacher_steps
from stepladder.sampling.guidance import GuidanceConfig
from stepladder.tokenizer import TokenizerConfig

__all__ = [
    "AdversarialConfig",
    "DataConfig",
    "DistillConfig",
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


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where images come from."""

    train: list[str] = field(default_factory=list)
    """Folders, `.tar` shards, Parquet files (globs allowed) or one hub id."""
    validation: list[str] = field(default_factory=list)
    """Images of the grids and of the PSNR in the records; empty for none."""
    validation_images: int = 8
    """How many of them are used."""
    validation_size: int = 256
    """Side to which they are cut."""
    crop: CropConfig = field(default_factory=CropConfig)
    """Random crops."""
    workers: int = 0
    """Loader processes for each training process; 0 loads in the process itself."""

    def __post_init__(self) -> None:
        _check_at_least(self, 0, "workers", where="data")
        _check_at_least(self, 1, "validation_images", "validation_size", where="data")


@dataclass(frozen=True, kw_only=True)
class StartConfig:
    """Where weights come from at step 0."""

    principal_components: bool = False
    """Start the encoder's linear part from principal components of patches, and the draft from their inverse."""
    encoder_from: str | None = None
    """Model (name, folder or hub id) whose encoder and bottleneck to take."""
    decoder_from: str | None = None
    """Model whose decoder network to take; its ladder may have another number of stages."""
    transfer_from: str | None = None
    """Model from which to take what has the same name and shape in encoder and decoder network: all but the layers at
    the latent, where this run has another bottleneck. With principal_components, linear parts start from those."""
    train_encoder: bool = True
    """Whether the encoder learns; a frozen one needs `encoder_from`."""

    def __post_init__(self) -> None:
        if self.principal_components and (self.encoder_from is not None or self.decoder_from is not None):
            raise ConfigError(
                "start.principal_components is true beside start.encoder_from or start.decoder_from. Use one of them: "
                "weights of a model are already trained."
            )
        others = (self.encoder_from, self.decoder_from)
        if self.transfer_from is not None and any(other is not None for other in others):
            raise ConfigError(
                "start.transfer_from is set beside start.encoder_from or start.decoder_from. Use it without them: it "
                "brings both encoder and decoder."
            )
        if not self.train_encoder and self.encoder_from is None:
            raise ConfigError(
                "start.train_encoder is false without weights. Set start.encoder_from to a trained model."
            )


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the loss."""

    target: FlowTarget = "clean"
    """What the flow loss compares: the clean estimate, the same weighted by noise level, or the velocity."""
    perceptual_weight: float = 0.1
    """Weight of the perceptual distance of the clean estimate at the last stage; 0 runs no feature network."""
    draft_weight: float = 0.25
    """Weight of the squared error of the draft image, where the decoder makes one."""
    time_distribution: TimeDistribution = "uniform"
    """How local times are drawn: 'uniform', or 'lognormal', which looks more often at the middle of each stage."""
    time_location: float = 0.0
    """Mean of log(u / (1-u)), of lognormal times; below 0, low noise levels come more often."""
    time_scale: float = 1.0
    """Standard deviation of log(u / (1-u)), of lognormal times."""
    time_shift: float = 1.0
    """Shift of the local times that are drawn; below 1, low noise levels come more often."""
    weighting: FlowWeighting = "none"
    """How much each noise level counts beside the target: the same, or by a sigmoid of its log-SNR."""
    weighting_bias: float = -3.0
    """Log-SNR of the middle of that sigmoid: noisier levels count less."""
    context_dropout: float = 0.0
    """Share of the latents that are replaced by the decoder's null latent, which guidance needs."""

    def __post_init__(self) -> None:
        if not 0 < self.time_shift < math.inf:
            raise ConfigError(f"loss.time_shift {self.time_shift} is not positive. Usual values: 0.3 to 1.")
        if not 0 < self.time_scale < math.inf:
            raise ConfigError(f"loss.time_scale {self.time_scale} is not positive. Usual value: 1.")
        if not math.isfinite(self.time_location):
            raise ConfigError(f"loss.time_location {self.time_location} is no finite number. Usual values: -1 to 1.")
        if not -20 <= self.weighting_bias <= 20:
            raise ConfigError(f"loss.weighting_bias {self.weighting_bias} is outside [-20, 20]. Usual value: -3.")
        if not 0 <= self.context_dropout <= 1:
            raise ConfigError(f"loss.context_dropout {self.context_dropout} is outside [0, 1]. Usual value: 0.1.")
        _check_at_least(self, 0, "perceptual_weight", "draft_weight", where="loss")


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """AdamW with linear warm-up, a constant rate, and a decay to zero at the end."""

    learning_rate: float = 5e-4
    """Peak rate."""
    principal_rate: float | None = None
    """Rate of the linear parts of encoder and decoder, relative to the others. By default 0.03 in a run that starts
    from principal components (they are nearly right, and Adam's steps are large beside their small weights), else 1."""
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
        _check_at_least(self, 0, "warmup_steps", "weight_decay", where="optimiser")
        if self.principal_rate is not None:
            _check_at_least(self, 0, "principal_rate", where="optimiser")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every run has; `TrainConfig` and `DistillConfig` add what is learnt."""

    data: DataConfig
    """Images."""
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    """Optimiser."""
    steps: int = 10_000
    """Optimiser steps of the whole run."""
    batch_size: int = 16
    """Images in a batch of one process."""
    accumulate: int = 1
    """Batches for one optimiser step."""
    ema_decay: float = 0.999
    """Decay d of the moving average of the weights; it warms up as min(d, (1+n)/(10+n))."""
    precision: Literal["no", "bf16"] = "no"
    """Autocast of the forward pass: none (float32), or bfloat16."""
    compile: bool = False
    """Compile the networks before training."""
    gradient_checkpointing: bool = False
    """Compute what is inside the blocks of a network again when gradients need it: less memory, a third more work."""
    seed: int = 0
    """Seed of initial weights, data order, crops, noise and times."""
    log_every: int = 10
    """Steps between records."""
    grid_every: int = 500
    """Steps between grids of reconstructions and validation records; 0 for none."""
    save_every: int = 500
    """Steps between checkpoints; one is always written at the end."""
    keep_checkpoints: int = 2
    """How many checkpoints stay in the run folder."""

    def __post_init__(self) -> None:
        _check_at_least(self, 1, "steps", "batch_size", "accumulate", "log_every", "save_every", "keep_checkpoints")
        _check_at_least(self, 0, "grid_every", "seed")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay {self.ema_decay} is outside [0, 1). Usual values: 0.99 to 0.9999.")
        if not self.data.train:
            raise ConfigError(
                "data.train is empty. Name folders, tar shards or Parquet files: --set 'data.train=[\"DIR\"]'."
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """A training run of a tokenizer, or of its decoder alone."""

    tokenizer: TokenizerConfig
    """What is trained."""
    start: StartConfig = field(default_factory=StartConfig)
    """Initial weights."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Loss."""


@dataclass(frozen=True, kw_only=True)
class RegressConfig:
    """The student's one step is regressed on the teacher's several, stage by stage, from the same noise."""

    kind: Literal["regress"] = "regress"
    """Which recipe."""
    teacher_steps: int = 8
    """Steps per stage of the teacher; at least 2."""
    unrolled_from: float = 0.5
    """Share of the run after which stages start from the student's own states, as in decoding."""
    perceptual_weight: float = 0.1
    """Weight of the perceptual distance of the student's image to the real one; 0 runs no feature network."""
    guidance: GuidanceConfig | None = None
    """Guidance of the teacher, which the student learns to do without; None for the teacher's own."""

    def __post_init__(self) -> None:
        check_teacher_steps(self.teacher_steps)
        _check_share(self.unrolled_from, "recipe.unrolled_from")
        _check_at_least(self, 0, "perceptual_weight", where="recipe")


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig:
    """The student decodes; teacher, feature network and discriminator say what its image lacks."""

    kind: Literal["adversarial"] = "adversarial"
    """Which recipe."""
    teacher_steps: int = 4
    """Steps of the teacher from the noise level to which the student's image is brought; at least 2."""
    distillation_weight: float = 1.0
    """Weight of the squared distance to where the teacher goes from there, summed over the stages."""
    perceptual_weight: float = 0.1
    """Weight of the perceptual distance of the student's image to the real one."""
    adversarial_share: float = 0.5
    """Norm of the adversarial gradient on the image, relative to that of the other losses."""
    adversarial_from: float = 0.05
    """Share of the run in which the discriminator learns alone before its gradient counts."""
    head_width: int = 64
    """Channels of the discriminator's heads."""
    head_rate: float = 1.0
    """Rate of the discriminator, relative to the student's."""
    guidance: GuidanceConfig | None = None
    """Guidance of the teacher, which the student learns to do without; None for the teacher's own."""

    def __post_init__(self) -> None:
        check_teacher_steps(self.teacher_steps)
        _check_share(self.adversarial_from, "recipe.adversarial_from")
        names = ("distillation_weight", "perceptual_weight", "adversarial_share", "head_rate")
        _check_at_least(self, 0, *names, where="recipe")
        _check_at_least(self, 1, "head_width", where="recipe")


@dataclass(frozen=True, kw_only=True)
class DistillConfig(RunConfig):
    """A run that distils a many-step decoder to one network evaluation per scale."""

    teacher: str
    """Model (name, folder or hub id) that teaches, and from which the student starts; any number of stages."""
    recipe: RegressConfig | AdversarialConfig = field(default_factory=RegressConfig)
    """How it teaches."""


def load_config(path: Path, overrides: Sequence[str] = (), *, presets: Mapping[str, Any]) -> TrainConfig:
    """Reads the configuration of a training run.

    Args:
        path: TOML or JSON file.
        overrides: `a.b=value` pairs; values are JSON, and anything that is not JSON is text.
        presets: Functions that give tokenizer configurations, by name.

    Raises:
        ConfigError: If the file cannot be read, or a key or value is not accepted.
    """
    data = _read(path, overrides)
    preset = data.pop("preset", None)
    if preset is not None:
        if not isinstance(preset, str) or preset not in presets:
            raise ConfigError(f"{path}: Unknown preset '{preset}'. Accepted: {', '.join(presets)}. Choose one of them.")
        changes = data.get("tokenizer", {})
        if not isinstance(changes, dict):
            raise ConfigError(
                f"{path}: Value of 'tokenizer' is {changes!r}. Accepted: a table of keys. Write keys in it."
            )
        data["tokenizer"] = _merge(unstructure(presets[preset]()), changes)
    return structure(data, TrainConfig, where=str(path))


def load_distill_config(path: Path, overrides: Sequence[str] = ()) -> DistillConfig:
    """Reads the configuration of a distillation.

    Raises:
        ConfigError: If the file cannot be read, or a key or value is not accepted.
    """
    return structure(_read(path, overrides), DistillConfig, where=str(path))


def dump(config: RunConfig) -> str:
    """The resolved configuration as JSON, which `load_config` reads back."""
    return json.dumps(unstructure(config), indent=2)


def _check_at_least(config: object, least: int, *names: str, where: str = "") -> None:
    for name in names:
        value = getattr(config, name)
        if not least <= value < 2**63:
            place = f"{where}.{name}" if where else name
            raise ConfigError(f"{place} {value} is {_out_of_range(value, least)}. Pass {least} or more.")


def _check_share(value: float, name: str) -> None:
    if not 0 <= value <= 1:
        raise ConfigError(f"{name} {value} is outside [0, 1]. It is a share of the run; usual values: 0 to 0.5.")


def _out_of_range(value: float, least: int) -> str:
    return f"less than {least}" if value < least else "too large or no number"


def _read(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    data = _read_file(path)
    for override in overrides:
        _set(data, override)
    return data


def _read_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"Cannot read config {path}: {error.strerror}. Pass a TOML or JSON file.") from error
    except (ValueError, UnicodeDecodeError) as error:
        raise ConfigError(f"Config {path} is not valid TOML or JSON: {error}. Mend it there.") from error
    if not isinstance(data, dict):
        raise ConfigError(f"Config {path} is not a table of keys. Write keys and values.")
    return data


def _set(data: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(
            f"Override '{override}' is not of the form a.b=value. Write for example optimiser.clip_norm=0.5."
        )
    try:
        parsed = json.loads(value)
    except ValueError:
        parsed = value
    *parents, last = key.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise ConfigError(
                f"Override '{override}' reaches into '{parent}', which is a value. Name a key of a table."
            )
    data[last] = parsed


def _merge(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        known = merged.get(key)
        merged[key] = _merge(known, value) if isinstance(known, dict) and isinstance(value, Mapping) else value
    return merged
