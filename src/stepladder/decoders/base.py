"""The contract of a decoder network, and a network on its ladder.

    context = network.context(latent)                       once for a whole decode
    network(x, u, stage, context, previous) -> Denoised     once for each step

`network.bind(latent)` does the first and returns a denoiser, which does the second (`sampling.denoiser`). A network
always returns the clean image at the scale of the stage. Its last layer predicts one of

    "clean"      X, the clean image (x-prediction, the default)
    "velocity"   w = x_start - x_end, which `clean_from_prediction` turns into X

x-prediction is the default because a network on large patches predicts smooth images far better than white noise.

Reference: Back to Basics: Let Denoising Generative Models Denoise (Li & He, 2025), https://arxiv.org/abs/2511.13720
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stepladder.errors import ConfigError
from stepladder.nn.embedding import tabulate
from stepladder.sampling.denoiser import Cut, Denoised, Denoiser
from stepladder.sampling.grids import time_grids
from stepladder.sampling.guidance import GuidanceConfig, evaluations_per_stage, guided
from stepladder.sampling.path import clean_from_velocity
from stepladder.sampling.scales import down
from stepladder.sampling.stages import Stage, StageSchedule
from stepladder.sampling.steps import EULER, SamplerConfig, evaluation_times
from stepladder.sampling.tiling import in_tiles, tiled

__all__ = [
    "BoundNetwork",
    "Context",
    "DecoderNetwork",
    "LadderDecoder",
    "PredictionKind",
    "clean_from_prediction",
    "enlarge",
]

PredictionKind = Literal["clean", "velocity"]

_NO_GUIDANCE = GuidanceConfig()


def enlarge(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c 2*h 2*w"]:
    """Doubles the side by repeating pixels, for the previous stage's image. The jump has its own `up`."""
    return images.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)


@dataclass(frozen=True, slots=True)
class Context:
    """What a network computes from a latent, once for a whole decode."""

    features: Float[Tensor, "b ..."]
    """Features of the latent, on its own grid."""
    initial: Float[Tensor, "b 3 H W"] | None
    """Initial estimate of the image from the latent alone; None if the network makes none."""

    def base(self, stage: Stage, previous: Denoised | None) -> Float[Tensor, "b 3 h w"]:
        """The base of a stage: the initial estimate, its low frequencies replaced by those of the previous clean image.

        B = I + enlarge(P - down(I)),    I the initial estimate at the scale of the stage, P the clean image before it
        """
        assert self.initial is not None
        initial = down(self.initial, stage.downscale)
        return initial if previous is None else initial + enlarge(previous.clean - down(initial))

    def cut(self, cut: Cut) -> "Context":
        """The same for a part of the image."""
        return Context(cut(self.features), None if self.initial is None else cut(self.initial))

    def parts(self) -> list[Tensor]:
        """What there is of it."""
        return [self.features] if self.initial is None else [self.features, self.initial]


class DecoderNetwork(nn.Module, ABC):
    """A network that denoises at every stage of a ladder. It does not depend on samplers."""

    guidable: bool = False
    """Whether it has a null latent, for decodes without a latent: context dropout and guidance need it."""
    tile_margin: int | None = None
    """Pixels that `forward` must see around a tile so that the result does not visibly differ from the whole image.

    A multiple of `side_multiple` and of the side of a latent cell. None for a network that needs the whole image,
    because of attention or positions, and cannot be tiled.
    """
    latent_cell: int | None = None
    """Side in pixels of a cell of the latent; None for a network whose `context` must see the whole latent."""
    latent_reach: int = 0
    """How many cells around each `context` sees."""
    can_checkpoint: ClassVar[bool] = False
    """Whether it can recompute the activations of its blocks instead of storing them."""
    checkpointing: bool = False
    """Whether it does."""
    initial_layers: nn.Module | None = None
    """The part that makes the initial estimate and nothing else; None if there is none."""
    fused: bool = False
    """Whether it runs only at the start of stages, with everything that depends on time as constants."""
    linear: nn.Conv2d | nn.Linear | None
    """The layer that makes the initial estimate, or a part of it, linear in the latent; None if there is none."""

    @property
    @abstractmethod
    def side_multiple(self) -> int:
        """Sides of what `forward` gets must be multiples of this."""

    @property
    @abstractmethod
    def output_layers(self) -> tuple[nn.Module, ...]:
        """The last layers, which start at zero; with them at zero, the network adds nothing to its base."""

    def embedding(self, u: Float[Tensor, " b"], stage: Stage) -> Float[Tensor, "b e"]:
        """Embedding of local times of a stage, for the projections of the blocks; empty if there are none."""
        return u.new_empty(u.shape[0], 0)

    def place(self, u: Float[Tensor, " b"], stage: Stage) -> Tensor:
        """The input of the projections of the blocks: the embedding, or the row of the tables of a fused network."""
        if not self.fused:
            return self.embedding(u, stage)
        return torch.full((1,), stage.index, dtype=torch.int64, device=u.device)

    def fuse(self, schedule: StageSchedule) -> None:
        """Precomputes, in place, what depends on the times of one step per stage; no others work afterwards."""
        device = next(self.parameters()).device
        with torch.no_grad():
            embeddings = [self.embedding(torch.ones(1, device=device), stage) for stage in schedule.stages]
        tabulate(self, torch.cat(embeddings))
        self.fused = True

    @abstractmethod
    def context(self, latent: Float[Tensor, "b ..."], dropped: Bool[Tensor, " b"] | None = None) -> Context:
        """Reads latents; the null latent instead where `dropped` is true.

        Raises:
            ConfigError: If some shall be dropped, and the network has no null latent.
        """

    @abstractmethod
    def forward(
        self,
        x: Float[Tensor, "b 3 h w"],
        u: Float[Tensor, " b"],
        stage: Stage,
        context: Context,
        previous: Denoised | None,
    ) -> Denoised:
        """Estimates the clean image from x_u at local times `u`; `previous` is the result of the stage before."""

    def start_from_synthesis(self, synthesis: Float[Tensor, "c n"], mean: Float[Tensor, " n"]) -> None:
        """Makes the initial estimate the linear decoding of a linear code: latent times matrix, plus mean.

        Raises:
            ConfigError: If the network has no linear layer.
        """
        raise ConfigError(f"{type(self).__name__} has no linear part that could start from principal components.")

    def bind(
        self, latent: Float[Tensor, "b ..."], dropped: Bool[Tensor, " b"] | None = None, *, tile: int = 0
    ) -> "BoundNetwork":
        """The denoiser of latents; where `dropped` is true, of the null latent.

        Args:
            latent: A batch of them.
            dropped: Those that are left out.
            tile: Side in pixels of the tiles in which a network reads them that can; 0 for none.
        """
        if not tile or self.latent_cell is None:
            return BoundNetwork(self, self.context(latent, dropped))
        features, *initial = in_tiles(
            lambda part: self.context(part, dropped).parts(),
            latent,
            side=tile // self.latent_cell,
            margin=self.latent_reach,
        )
        return BoundNetwork(self, Context(features, initial[0] if initial else None))


@dataclass(frozen=True, slots=True)
class BoundNetwork:
    """A network with the context of latents: a denoiser that can be cut to parts of the image."""

    network: DecoderNetwork
    context: Context

    def __call__(
        self, x: Float[Tensor, "b 3 h w"], u: Float[Tensor, " b"], stage: Stage, previous: Denoised | None
    ) -> Denoised:
        """Evaluates the network; the contract is that of `Denoiser`."""
        denoised: Denoised = self.network(x, u, stage, self.context, previous)
        return denoised

    def cut(self, cut: Cut) -> "BoundNetwork":
        """The denoiser of a part of the image."""
        return BoundNetwork(self.network, self.context.cut(cut))


def clean_from_prediction(
    out: Float[Tensor, "b 3 h w"],
    kind: PredictionKind,
    x: Float[Tensor, "b 3 h w"],
    u: Float[Tensor, " b"],
    stage: Stage,
) -> Float[Tensor, "b 3 h w"]:
    """The clean image, in float32, that the output of a network stands for."""
    return out.float() if kind == "clean" else clean_from_velocity(x, out.float(), u, stage)


class LadderDecoder(nn.Module):
    """A network and its ladder."""

    def __init__(self, network: DecoderNetwork, schedule: StageSchedule) -> None:
        super().__init__()
        self.network: DecoderNetwork = network
        self.schedule = schedule

    @property
    def side_multiple(self) -> int:
        """Image sides must be multiples of this for every stage to fit the network."""
        return self.network.side_multiple * self.schedule.multiple

    def bind(
        self, latent: Float[Tensor, "b ..."], *, tile: int = 0, guidance: GuidanceConfig = _NO_GUIDANCE
    ) -> Denoiser:
        """The denoiser of latents, tiled and guided if requested.

        Args:
            latent: A batch of them.
            tile: Side of the tiles for the latent and for stages with a longer side; 0 for no tiles. A multiple of
                `side_multiple` and of the side of a latent cell.
            guidance: Of the decode; without an effect it costs nothing.

        Raises:
            ConfigError: If this decoder cannot be guided like this.
        """
        self.check_guidance(guidance)
        denoiser = self._in_tiles(self.network.bind(latent, tile=tile), tile)
        if guidance.is_off:
            return denoiser
        everything = torch.ones(latent.shape[0], dtype=torch.bool, device=latent.device)
        return guided(denoiser, self._in_tiles(self.network.bind(latent, everything, tile=tile), tile), guidance)

    def check_guidance(self, guidance: GuidanceConfig) -> None:
        """Checks that this decoder can be guided like this.

        Raises:
            ConfigError: If it has no null latent, and the scale is not 1.
        """
        if not guidance.is_off and not self.network.guidable:
            raise ConfigError(
                f"Guidance scale {guidance.scale:g} does not fit a decoder without a null latent. Use scale 1, or a "
                "model that was trained with loss.context_dropout."
            )

    def evaluations(
        self, steps: int | Sequence[int], guidance: GuidanceConfig = _NO_GUIDANCE, sampler: SamplerConfig = EULER
    ) -> tuple[int, ...]:
        """Network evaluations in each stage of a decode.

        Args:
            steps: Steps per stage, one number for all stages or one for each.
            guidance: Of the decode.
            sampler: Of the decode.
        """
        grids = time_grids(self.schedule, steps, sampler.shifts(self.schedule))
        times = [
            evaluation_times(stage, grid, sampler.kind) for stage, grid in zip(self.schedule.stages, grids, strict=True)
        ]
        return evaluations_per_stage(guidance, self.schedule, times)

    def _in_tiles(self, bound: BoundNetwork, tile: int) -> Denoiser:
        margin = self.network.tile_margin
        return tiled(bound, tile, margin) if tile and margin is not None else bound
