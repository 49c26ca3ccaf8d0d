"""Training of a tokenizer: encoder, bottleneck and decoder together, or the decoder on a frozen encoder."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stepladder.bottlenecks import BottleneckOutput
from stepladder.data import CodedImages
from stepladder.encoders import FrozenEncoderConfig
from stepladder.errors import ConfigError
from stepladder.losses import (
    FeaturePyramid,
    LocalTimes,
    draw_stages,
    feature_network,
    ladder_loss,
    perceptual_distance,
)
from stepladder.sampling.randomness import generator
from stepladder.tokenizer import Tokenizer
from stepladder.tokenizer_config import TokenizerConfig
from stepladder.training.coding import coded
from stepladder.training.config import LossConfig, TrainConfig
from stepladder.training.ladder import LadderObjective, draw_dropped, run_on_images
from stepladder.training.records import StepRecord
from stepladder.training.start import make_tokenizer, rebuild_tokenizer

__all__ = ["TokenizerObjective", "train"]

_LINEAR_RATE_SCALE = 0.03


def train(
    config: TrainConfig,
    run_dir: Path,
    *,
    resume: bool = False,
    on_record: Callable[[StepRecord], None] = lambda _: None,
    stop_after: int | None = None,
) -> Path:
    """Trains a tokenizer; arguments, result and errors are those of `run_on_images`."""

    def objective(stored: TokenizerConfig | None) -> TokenizerObjective:
        return TokenizerObjective(
            make_tokenizer(config) if stored is None else rebuild_tokenizer(config, stored),
            config.loss,
            feature_network() if config.loss.perceptual_weight else None,
            train_encoder=config.start.train_encoder and not isinstance(config.tokenizer.encoder, FrozenEncoderConfig),
            linear_rate_scale=_linear_rate_scale(config),
        )

    return run_on_images(objective, config, run_dir, resume=resume, on_record=on_record, stop_after=stop_after)


def _linear_rate_scale(config: TrainConfig) -> float:
    """Scale of the learning rate of the linear parts."""
    given = config.optimiser.linear_rate_scale
    if given is None:
        return _LINEAR_RATE_SCALE if config.start.principal_components else 1.0
    return given


class TokenizerObjective(LadderObjective):
    """Flow loss of the ladder, perceptual distance, error of the initial estimate, and what the bottleneck adds.

    Raises:
        ConfigError: If latents shall be dropped, and the decoder has no null latent.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        config: LossConfig,
        features: FeaturePyramid | None,
        *,
        train_encoder: bool,
        linear_rate_scale: float = 1.0,
    ) -> None:
        super().__init__(tokenizer, linear_rate_scale=linear_rate_scale)
        if config.context_dropout and not tokenizer.decoder.network.guidable:
            raise ConfigError(
                f"loss.context_dropout {config.context_dropout} does not fit a decoder without a null latent. Use 0, "
                "or set tokenizer.decoder.null_latent of a decoder of kind 'mmdit'."
            )
        reader = tokenizer.decoder.network.initial_layers
        if config.target == "initial" and reader is None:
            raise ConfigError(
                "loss.target 'initial' does not fit a decoder that makes no initial estimate by layers of its own. "
                "Accepted: decoders of kind 'conv'. Choose another target."
            )
        self.config = config
        self.times = LocalTimes(
            distribution=config.time_distribution,
            location=config.time_location,
            scale=config.time_scale,
            shift=config.time_shift,
        )
        self.features = features
        self.train_encoder = train_encoder
        tokenizer.encoder.requires_grad_(train_encoder)
        tokenizer.bottleneck.requires_grad_(train_encoder)
        self.evaluates_stages = config.target != "initial"
        if config.target == "initial" and reader is not None:
            tokenizer.decoder.requires_grad_(False)
            reader.requires_grad_(True)

    def frozen(self) -> Iterable[nn.Module]:
        """The feature network, and an encoder that does not learn."""
        if self.features is not None:
            yield self.features
        if not self.train_encoder:
            yield self.tokenizer.encoder
            yield self.tokenizer.bottleneck

    def forward(
        self, batch: Float[Tensor, "b 3 H W"] | CodedImages, seed: int, progress: float = 0.0
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """The loss of a batch of images in [-1, 1], with or without latents; noise and times follow from `seed`."""
        draw = generator(seed, batch.device)
        with torch.set_grad_enabled(self.train_encoder and torch.is_grad_enabled()):
            images, code = coded(self.tokenizer, batch, draw)
        decoder, config = self.tokenizer.decoder, self.config
        if config.target == "initial":
            return self._initial_loss(images, code)
        dropped = draw_dropped(decoder.network, code.latent, config.context_dropout, draw)
        denoiser = decoder.network.bind(code.latent, dropped)
        parts = ladder_loss(
            denoiser,
            decoder.schedule,
            images,
            denoiser.context.initial,
            draw_stages(decoder.schedule, images, draw, times=self.times),
            target=config.target,
            features=self.features,
            weighting=config.weighting,
            weighting_bias=config.weighting_bias,
        )
        loss = torch.stack(parts.flow).sum() + code.loss + config.perceptual_weight * parts.perceptual
        losses = {f"flow_{i}": part for i, part in enumerate(parts.flow)} | {"perceptual": parts.perceptual}
        if parts.initial is not None:
            loss = loss + config.initial_weight * parts.initial
            losses["initial"] = parts.initial
        return loss, {"total": loss, **losses, "bottleneck": code.loss, **code.statistics}

    def _initial_loss(
        self, images: Float[Tensor, "b 3 H W"], code: BottleneckOutput
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """The loss of the initial estimate alone: nothing is drawn, and no stage is evaluated."""
        config, initial = self.config, self.tokenizer.decoder.network.context(code.latent).initial
        assert initial is not None
        error = (initial - images).square().mean()
        perceptual = images.new_zeros(())
        if self.features is not None:
            perceptual = perceptual_distance(self.features, initial, images).mean()
        loss = error + config.perceptual_weight * perceptual + code.loss
        losses = {"initial": error, "perceptual": perceptual, "bottleneck": code.loss}
        return loss, {"total": loss, **losses, **code.statistics}
