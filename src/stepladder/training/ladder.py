"""Runs of tokenizers: what training and distillation share.

The model is a tokenizer, the batches are crops, and what is exported is a model folder. At intervals its averaged
weights reconstruct validation images, and what the network adds at each stage is measured (`validation`).
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stepladder.configs import structure, unstructure
from stepladder.data import CodedImages
from stepladder.decoders import DecoderNetwork
from stepladder.encoders import FrozenEncoder, FrozenEncoderConfig
from stepladder.errors import ConfigError
from stepladder.layouts import TokenLayout
from stepladder.sampling.randomness import uniform
from stepladder.tokenizer import Tokenizer
from stepladder.tokenizer_config import TokenizerConfig
from stepladder.training.batches import Batch, image_batches
from stepladder.training.config import ImageRunConfig
from stepladder.training.folder import RunFolder
from stepladder.training.loop import Task, fit
from stepladder.training.objective import Objective, OptimiserGroup
from stepladder.training.records import StepRecord
from stepladder.training.state import load_model_config
from stepladder.training.validation import ImageValidation

__all__ = ["LadderObjective", "draw_dropped", "run_on_images"]

_ANY_SIDE = 256
"""Side of validation images for a model that takes any."""


class LadderObjective(Objective):
    """A tokenizer, what teaches it, and their loss."""

    def __init__(self, tokenizer: Tokenizer, *, linear_rate_scale: float = 1.0) -> None:
        """Holds what is trained.

        Args:
            tokenizer: The model.
            linear_rate_scale: Scale of the learning rate of the linear parts of its encoder and decoder.
        """
        super().__init__(tokenizer)
        self.linear_rate_scale = linear_rate_scale
        self.evaluates_stages = True

    @property
    def tokenizer(self) -> Tokenizer:
        """The model."""
        assert isinstance(self.model, Tokenizer)
        return self.model

    def optimiser_groups(self) -> list[OptimiserGroup]:
        """All of the tokenizer that learns, its linear parts at a rate of their own.

        Raises:
            ConfigError: If there are none that learn, and a scale for them.
        """
        if self.linear_rate_scale == 1:
            return super().optimiser_groups()
        learning = [p for p in self.tokenizer.parameters() if p.requires_grad]
        layers = [part.linear for part in (self.tokenizer.encoder, self.tokenizer.decoder.network)]
        linear = {id(p) for layer in layers if layer is not None for p in layer.parameters()}
        slow = [p for p in learning if id(p) in linear]
        if not slow:
            raise ConfigError(
                f"optimiser.linear_rate_scale {self.linear_rate_scale:g} is for linear parts, and neither encoder nor "
                "decoder has one that learns. Leave it out."
            )
        fast = [p for p in learning if id(p) not in linear]
        return [OptimiserGroup(fast), OptimiserGroup(slow, relative_rate=self.linear_rate_scale)]

    def model_config(self) -> dict[str, Any]:
        """That of the tokenizer."""
        return unstructure(self.tokenizer.config)

    def networks(self) -> tuple[nn.Module, ...]:
        """Encoder, unless it is that of another library, and decoder network."""
        encoder, network = self.tokenizer.encoder, self.tokenizer.decoder.network
        return (network,) if isinstance(encoder, FrozenEncoder) else (encoder, network)


def run_on_images(
    make_objective: Callable[[TokenizerConfig | None], LadderObjective],
    config: ImageRunConfig,
    run_dir: Path,
    *,
    resume: bool,
    on_record: Callable[[StepRecord], None],
    stop_after: int | None,
) -> Path:
    """Trains the tokenizer of an objective on the images of a configuration.

    Args:
        make_objective: Called once on each process, with the same result, when it is clear that the run may start. It
            gets the configuration of the tokenizer at the checkpoint, from which all weights will come, or None.
        config: The run.
        run_dir: Where its files go; without `resume` it must hold no run yet.
        resume: Go on from the newest checkpoint there, bit for bit as if never interrupted.
        on_record: Called with every record, by the main process.
        stop_after: Stop, with a checkpoint, once this many steps are taken in all; None runs to the end, and 0 takes
            none and leaves the model that the run starts from.

    Returns:
        Folder of the trained tokenizer (averaged weights).

    Raises:
        StepladderError: If folder, configuration or data cannot be used, or the loss stops being finite.
    """
    data = config.data
    batches = image_batches(data, crop=data.crop, batch_size=config.batch_size, seed=config.seed)
    folder = RunFolder(run_dir, config, resume=resume)
    objective = make_objective(_at_checkpoint(folder))
    tokenizer = objective.tokenizer
    _check_crop(config, tokenizer)
    task = Task(
        objective=objective,
        batches=partial(batches, stride=tokenizer.layout.side_multiple) if data.latents else batches,
        example=_example(config, tokenizer),
        validation=ImageValidation(
            config,
            side=_validation_side(config, tokenizer),
            stride=tokenizer.layout.side_multiple,
            stages=objective.evaluates_stages,
        ),
        export=_export,
    )
    fit(task, config, folder, on_record=on_record, stop_after=stop_after)
    return run_dir / "model"


def draw_dropped(
    network: DecoderNetwork, latent: Float[Tensor, "b ..."], share: float, generator: torch.Generator | None = None
) -> Bool[Tensor, " b"] | None:
    """Which images of a batch are decoded without their latent; None for a network that has no null latent.

    With one, the result is never None, not even for a share of 0. So the null latent is part of every batch and gets a
    gradient, even if zero, because processes that average gradients need one for each parameter.

    Args:
        network: Which decodes.
        latent: The batch.
        share: Mean share of images that are dropped; the number in a batch differs from it by less than 1.
        generator: Needed for a share above 0.
    """
    if not network.guidable:
        return None
    if not share:
        return torch.zeros(latent.shape[0], dtype=torch.bool, device=latent.device)
    assert generator is not None
    return (uniform(latent.shape[0], generator) < share).to(latent.device)


def _at_checkpoint(folder: RunFolder) -> TokenizerConfig | None:
    """The tokenizer's configuration there; None for a new run, or if a version wrote it that did not store that."""
    place = folder.state
    stored = load_model_config(place) if place is not None else {}
    return structure(stored, TokenizerConfig, where=str(place)) if stored else None


def _example(config: ImageRunConfig, tokenizer: Tokenizer) -> Batch:
    side = config.data.crop.size
    image = torch.zeros(1, 3, side, side)
    if not config.data.latents:
        return image
    return CodedImages(image, torch.zeros(1, *tokenizer.layout.shape((side, side))))


def _export(model: nn.Module, folder: Path) -> None:
    assert isinstance(model, Tokenizer)
    model.save_pretrained(folder / "model")


def _check_crop(config: ImageRunConfig, tokenizer: Tokenizer) -> None:
    size, multiple = config.data.crop.size, tokenizer.side_multiple
    if config.data.latents and not isinstance(tokenizer.config.encoder, FrozenEncoderConfig):
        raise ConfigError(
            f"data.latents is true, and the encoder is of kind '{tokenizer.config.encoder.kind}', which the model "
            "itself holds. Accepted: 'onnx', 'diffusers' or 'files'. Set tokenizer.encoder, or data.latents to false."
        )
    if isinstance(tokenizer.layout, TokenLayout) and size != tokenizer.layout.side:
        raise ConfigError(
            f"data.crop.size {size} is not {tokenizer.layout.side}, the one side that the model takes. Set it to that."
        )
    if size % multiple:
        raise ConfigError(
            f"data.crop.size {size} is not a multiple of {multiple}, which encoder and coarsest stage need. "
            f"Use {max(1, round(size / multiple)) * multiple}."
        )


def _validation_side(config: ImageRunConfig, tokenizer: Tokenizer) -> int:
    """The side to which validation images are cut.

    Raises:
        ConfigError: If the model takes another one only.
    """
    wanted = config.data.validation_size
    only = tokenizer.layout.side if isinstance(tokenizer.layout, TokenLayout) else None
    if only is not None and wanted not in (None, only):
        raise ConfigError(
            f"data.validation_size {wanted} is not {only}, the one side that the model takes. Set it to that, or leave "
            "it out."
        )
    return wanted or only or _ANY_SIDE
