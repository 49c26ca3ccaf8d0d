"""What defines a tokenizer but its weights: the content of `config.json`."""

from dataclasses import dataclass, field

from stepladder.bottlenecks import BottleneckConfig, PlainConfig
from stepladder.bounds import MAX_STEPS
from stepladder.configs import MAX_WIDTH, check_between, check_number
from stepladder.decoders import ConvDecoderConfig, DecoderConfig
from stepladder.encoders import ConvEncoderConfig, EncoderConfig, latent_layout
from stepladder.errors import ConfigError
from stepladder.layouts import Layout
from stepladder.sampling.guidance import GuidanceConfig
from stepladder.sampling.scales import MAX_GAMMA
from stepladder.sampling.stages import StageSchedule

__all__ = ["LadderConfig", "TokenizerConfig"]

MAX_TILE = 2**16
"""Longest side of a tile."""


@dataclass(frozen=True, kw_only=True)
class LadderConfig:
    """The ladder of scales. Sides are halved by the mean of 2x2 pixels, which is antialiased."""

    num_stages: int = 3
    """K; 1 is the ordinary full-resolution diffusion decoder."""
    ends: list[float] | None = None
    """Noise level at the end of each stage, falling to 0, as `stepladder schedule` proposes them; None for equal
    steps."""
    residuals: list[float] | None = None
    """Standard deviation that the latent leaves open at the scale of each stage, as `stepladder schedule` measures it:
    where stages draw, and the scale of what their network adds; None if it was not measured."""
    gamma: float = MAX_GAMMA
    """In-block correlation of the noise that a jump adds, in (0, 1/3]."""

    def __post_init__(self) -> None:
        check_number(self.num_stages, 1, 8, name="Number of stages", usual="1 to 4")
        if not 0 < self.gamma <= MAX_GAMMA:
            raise ConfigError(
                f"Block correlation gamma {self.gamma} is outside (0, 1/3]. Leave it at its default, 1/3."
            )
        for name, values in (("ends", self.ends), ("residuals", self.residuals)):
            if values is not None and len(values) != self.num_stages:
                raise ConfigError(
                    f"Ladder {name} {list(values)} are not one number for each of {self.num_stages} stages. Set both "
                    f"ladder.num_stages and ladder.{name}."
                )
        try:
            self.schedule()
        except ValueError as error:
            raise ConfigError(f"Ladder: {error}") from error

    def schedule(self) -> StageSchedule:
        """The stages that these settings describe."""
        uniform = StageSchedule.uniform(self.num_stages, self.gamma)
        ends = self.ends or [stage.t_end for stage in uniform.stages]
        return StageSchedule.from_ends(ends, gamma=self.gamma, residuals=self.residuals)


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Everything that defines a tokenizer but its weights."""

    latent_channels: int = 16
    """c of a grid latent, D of latent tokens."""
    encoder: EncoderConfig = field(default_factory=ConvEncoderConfig)
    """Images to features."""
    bottleneck: BottleneckConfig = field(default_factory=PlainConfig)
    """Features to a latent of unit scale."""
    decoder: DecoderConfig = field(default_factory=ConvDecoderConfig)
    """The network that denoises."""
    ladder: LadderConfig = field(default_factory=LadderConfig)
    """Its stages."""
    steps_per_stage: int = 8
    """Steps in each stage where a call names none."""
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    """Guidance on the latent where a call names none."""
    tile: int = 1024
    """Stages with a longer side than this are decoded in tiles of this side, or of half of it where the image is longer
    than 4 tiles; 0 for never."""
    description: str = ""
    """One line on what the weights were trained on, and their limits."""

    def __post_init__(self) -> None:
        check_between(self, 1, MAX_WIDTH, "latent_channels", where="Tokenizer", usual="4 to 64")
        check_between(self, 1, MAX_STEPS, "steps_per_stage", where="Tokenizer", usual="1 to 64")
        check_between(self, 0, MAX_TILE, "tile", where="Tokenizer", usual="512 to 2048; 0 for no tiles")
        networks = self.decoder.networks if isinstance(self.decoder, ConvDecoderConfig) else None
        stages = self.ladder.num_stages
        if networks is not None and not 1 <= len(networks) <= stages:
            raise ConfigError(
                f"Decoder networks are sizes of {len(networks)}, for a ladder of {stages} stages. Accepted: 1 to "
                f"{stages}. Write as many entries, or leave decoder.networks out."
            )

    @property
    def layout(self) -> Layout:
        """How latents are laid out."""
        return latent_layout(self.encoder, self.latent_channels)
