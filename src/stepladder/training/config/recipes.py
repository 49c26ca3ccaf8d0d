"""The configurations of `stepladder train` and `stepladder distill`."""

import math
from dataclasses import dataclass, field
from typing import Literal

from stepladder.configs import MAX_WIDTH
from stepladder.errors import ConfigError
from stepladder.losses import FlowTarget, FlowWeighting, TimeDistribution, check_teacher_steps
from stepladder.sampling.guidance import GuidanceConfig
from stepladder.tokenizer_config import TokenizerConfig
from stepladder.training.config.checks import check_at_least, check_share
from stepladder.training.config.run import ImageRunConfig

__all__ = ["AdversarialConfig", "DistillConfig", "LossConfig", "RegressConfig", "StartConfig", "TrainConfig"]


@dataclass(frozen=True, kw_only=True)
class StartConfig:
    """Where weights come from at step 0."""

    principal_components: bool = False
    """Start the encoder's linear part from principal components of patches, and the initial estimate from
    their inverse."""
    encoder_from: str | None = None
    """Model (name, folder or hub id) whose encoder and bottleneck to take."""
    decoder_from: str | None = None
    """Model whose decoder network to take; its ladder may have another number of stages, and stages may or may not hand
    on features: the layer that receives them starts at zero."""
    transfer_from: str | None = None
    """Model from which to take all weights of encoder and decoder network with the same name and shape: all but the
    layers at the latent, if this run has another bottleneck. With principal_components, linear parts start from
    those."""
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

    target: Literal[FlowTarget, "initial"] = "clean"
    """What is compared: the clean estimate of each stage ('clean'), the same weighted by noise level ('balanced'), the
    velocity ('velocity'), or, to begin with, the decoder's initial estimate alone ('initial'), without any stage."""
    perceptual_weight: float = 0.1
    """Weight of the perceptual distance of the clean estimate at the last stage; 0 runs no feature network."""
    initial_weight: float = 0.25
    """Weight of the squared error of the initial estimate of the image, where the decoder makes one."""
    time_distribution: TimeDistribution = "uniform"
    """How local times are drawn: 'uniform', or 'logit-normal', which favours the middle of each stage."""
    time_location: float = 0.0
    """Mean of log(u / (1-u)), of logit-normal times; below 0, low noise levels are more frequent."""
    time_scale: float = 1.0
    """Standard deviation of log(u / (1-u)), of logit-normal times."""
    time_shift: float = 1.0
    """Shift of the local times that are drawn; below 1, low noise levels are more frequent."""
    weighting: FlowWeighting = "none"
    """Additional weight of each noise level: uniform, or a sigmoid of its log-SNR."""
    weighting_bias: float = -3.0
    """Log-SNR of the middle of that sigmoid: noisier levels weigh less."""
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
        check_at_least(self, 0, "perceptual_weight", "initial_weight", where="loss")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(ImageRunConfig):
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
        check_share(self.unrolled_from, "recipe.unrolled_from")
        check_at_least(self, 0, "perceptual_weight", where="recipe")


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig:
    """The student decodes; teacher, feature network and discriminator judge its image."""

    kind: Literal["adversarial"] = "adversarial"
    """Which recipe."""
    teacher_steps: int = 4
    """Steps of the teacher from the noise level to which the student's image is brought; at least 2."""
    distillation_weight: float = 1.0
    """Weight of the squared distance to the teacher's result from there, summed over the stages."""
    pixel_weight: float = 0.0
    """Weight of the squared distance of the student's image to the real one."""
    perceptual_weight: float = 0.1
    """Weight of the perceptual distance of the student's image to the real one."""
    adversarial_share: float = 0.5
    """Norm of the adversarial gradient on the image, relative to that of the other losses."""
    adversarial_from: float = 0.05
    """Share of the run in which only the discriminator learns from this loss."""
    head_width: int = 64
    """Channels of the discriminator's heads."""
    every_scale: bool = False
    """Whether image, features and discriminator judge what each stage decodes, at its side, or the last stage alone."""
    head_rate: float = 1.0
    """Rate of the discriminator, relative to the student's."""
    guidance: GuidanceConfig | None = None
    """Guidance of the teacher, which the student learns to do without; None for the teacher's own."""

    def __post_init__(self) -> None:
        check_teacher_steps(self.teacher_steps)
        check_share(self.adversarial_from, "recipe.adversarial_from")
        names = ("distillation_weight", "pixel_weight", "perceptual_weight", "adversarial_share", "head_rate")
        check_at_least(self, 0, *names, where="recipe")
        check_at_least(self, 1, "head_width", where="recipe", most=MAX_WIDTH)


@dataclass(frozen=True, kw_only=True)
class DistillConfig(ImageRunConfig):
    """A run that distils a many-step decoder to one network evaluation per scale."""

    teacher: str
    """Model (name, folder or hub id) that teaches; any number of stages."""
    student: str | None = None
    """Model from which the student starts, of the teacher's encoder and ladder: with smaller networks, or distilled
    before; by default the teacher."""
    encoder: str | None = None
    """Path of the frozen encoder, for a teacher without one of its own; by default the one that the teacher names."""
    train_initial: bool = True
    """Whether the layers that make the initial estimate learn, too. Where they are large, they can do the work of the
    stages, which then fall silent."""
    recipe: RegressConfig | AdversarialConfig = field(default_factory=RegressConfig)
    """How the teacher teaches."""
