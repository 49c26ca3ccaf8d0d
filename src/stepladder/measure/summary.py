"""A tokenizer in numbers: its parts and their cost.

The cost of a network evaluation is counted, not timed. The count runs on the meta device, where tensors have shapes and
no values, so it takes no time and no memory.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from stepladder.encoders import FrozenEncoderConfig
from stepladder.layouts import GridLayout, TokenLayout
from stepladder.measure.profiling import count_flops
from stepladder.sampling.denoiser import Denoised
from stepladder.tokenizer import Tokenizer
from stepladder.tokenizer_config import TokenizerConfig

__all__ = ["COUNTED_SIDE", "ModelSummary", "StageSummary", "counted_side", "evaluation_gflop", "summarise"]

COUNTED_SIDE = 256
"""Side of the image for which costs are counted, where a model takes any."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSummary:
    """One stage of the ladder."""

    downscale: int
    """Image side over the side of this stage."""
    t_start: float
    """Noise level at which it starts."""
    t_end: float
    """Noise level at which it ends."""
    gflop: float
    """Of one network evaluation in this stage, for an image of `COUNTED_SIDE`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSummary:
    """A tokenizer in numbers."""

    description: str
    """What the weights were trained on, and their limits; empty if unknown."""
    latent: str
    """Its layout: `f8c16` for a grid, `64 tokens of 16` for tokens."""
    latent_channels: int
    """c of a grid, D of tokens."""
    stride: int | None
    """f of a grid, image side over latent side; None for tokens."""
    image_side: int | None
    """Side of the images that it takes; None for any size."""
    encoder: str | None
    """Name of the frozen encoder of its latents; None if the model holds its own."""
    encoder_parameters: int
    """Of encoder and bottleneck."""
    decoder_parameters: int
    stages: tuple[StageSummary, ...]
    """K of them, in the order in which they run."""
    steps_per_stage: int
    """Default of calls."""
    network_evaluations: int
    """Of a decode with `steps_per_stage` and the guidance of the model."""
    counted_side: int = COUNTED_SIDE
    """Side of the image for which costs are counted, where a model takes any."""

    @property
    def full_resolution_gflop(self) -> float:
        """Of one network evaluation at full resolution, for an image of `COUNTED_SIDE`."""
        return self.stages[-1].gflop

    def as_dict(self) -> dict[str, Any]:
        """Plain data, derived numbers included."""
        return dataclasses.asdict(self) | {"full_resolution_gflop": self.full_resolution_gflop}


def summarise(tokenizer: Tokenizer) -> ModelSummary:
    """Counts parameters and costs."""
    schedule, layout = tokenizer.schedule, tokenizer.layout
    costs = evaluation_gflop(tokenizer.config, counted_side(tokenizer.config))
    stages = tuple(
        StageSummary(downscale=stage.downscale, t_start=stage.t_start, t_end=stage.t_end, gflop=cost)
        for stage, cost in zip(schedule.stages, costs, strict=True)
    )
    return ModelSummary(
        description=tokenizer.config.description,
        latent=str(layout),
        latent_channels=layout.channels,
        stride=layout.stride if isinstance(layout, GridLayout) else None,
        image_side=layout.side if isinstance(layout, TokenLayout) else None,
        counted_side=counted_side(tokenizer.config),
        encoder=_frozen_encoder(tokenizer.config),
        encoder_parameters=_parameters(tokenizer.encoder) + _parameters(tokenizer.bottleneck),
        decoder_parameters=_parameters(tokenizer.decoder),
        stages=stages,
        steps_per_stage=tokenizer.steps_per_stage,
        network_evaluations=tokenizer.network_evaluations(),
    )


def _frozen_encoder(config: TokenizerConfig) -> str | None:
    encoder = config.encoder
    return f"{encoder.kind}: {encoder.source}" if isinstance(encoder, FrozenEncoderConfig) else None


def counted_side(config: TokenizerConfig) -> int:
    """The side for which costs are counted: `COUNTED_SIDE`, or the one side that the model takes."""
    return config.layout.side if isinstance(config.layout, TokenLayout) else COUNTED_SIDE


@torch.no_grad()
def evaluation_gflop(config: TokenizerConfig, side: int = COUNTED_SIDE) -> list[float]:
    """GFLOP of one network evaluation in each stage, for one square image.

    Args:
        config: Of the tokenizer.
        side: Of the image; counted for the next larger side that fits the ladder.

    Raises:
        ImageError: If the model takes images of another size only.
    """
    with torch.device("meta"):
        tokenizer = Tokenizer(config)
        decoder = tokenizer.decoder
        layout = config.layout
        layout.check_size((side, side))
        side += -side % decoder.side_multiple
        denoiser = decoder.bind(torch.zeros(1, *layout.shape((side, side))))
        costs: list[float] = []
        seen: list[Denoised] = []
        for stage in decoder.schedule.stages:
            x, u = torch.zeros(1, 3, side // stage.downscale, side // stage.downscale), torch.ones(1)
            previous = seen[-1] if seen else None
            costs.append(count_flops(lambda: seen.append(denoiser(x, u, stage, previous))) / 1e9)  # noqa: B023 - at once
    return costs


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
