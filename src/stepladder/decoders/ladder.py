"""From a network to a denoiser on a ladder.

A network sees a noisy image, the global noise coordinate, the scale, and a context that it made once from the latent.
What it returns means, by config:

    "clean"      X, the clean image at the scale of the stage (x-prediction, the default)
    "velocity"   w = x_start - x_end

and this module turns either into the other, so that samplers and losses always get both. x-prediction is the default
because a network on large patches predicts smooth images far better than white noise.

Large images are looked at in tiles (`tiling`), but for the first stage of a ladder, which is small: there the decoder
sees the image as a whole. A ladder with K = 1 has no such stage, and its only one is tiled.

With guidance (`guidance`), the network looks a second time, at the context of a null latent.

Reference: Back to Basics: Let Denoising Generative Models Denoise (Li & He, 2025), https://arxiv.org/abs/2511.13720
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stepladder.decoders.guidance import GuidanceConfig, evaluations_per_stage, guide
from stepladder.decoders.tiling import Cut, predict_in_tiles
from stepladder.errors import ConfigError
from stepladder.samplers import Denoiser, Prediction
from stepladder.stages import NOISE_FLOOR, Stage, StageSchedule, clean_from_velocity, down, up, velocity_from_clean

__all__ = ["Context", "DecoderNetwork", "LadderDecoder", "Prediction", "PredictionKind"]

PredictionKind = Literal["clean", "velocity"]

_NO_GUIDANCE = GuidanceConfig()


@dataclass(frozen=True, slots=True)
class Context:
    """What a network made of a latent, once for a whole decode."""

    features: Float[Tensor, "b ..."]
    """Features of the latent, on its own grid."""
    draft: Float[Tensor, "b 3 H W"] | None
    """A first image, straight from the latent and without noise, which the network refines; None if it makes none."""

    def guess(self, downscale: int, below: Float[Tensor, "b 3 h w"] | None) -> Float[Tensor, "b 3 h2 w2"]:
        """The draft at a scale, its low frequencies replaced by what the stage before found: D + up(below - down(D)).

        Args:
            downscale: Side of the image over side of the guess, a power of two.
            below: Clean image of the stage before, at half the side of the guess; None for the draft as it is.
        """
        assert self.draft is not None
        guess = down(self.draft, downscale)
        return guess if below is None else guess + up(below - down(guess))


class DecoderNetwork(Protocol):
    """A network that can stand in a ladder. It knows no samplers."""

    @property
    def side_multiple(self) -> int:
        """Sides of what `forward` gets must be multiples of this."""
        ...

    @property
    def tile_margin(self) -> int | None:
        """How many pixels around a tile `forward` must see, so that no difference to the whole image shows in it.

        A multiple of `side_multiple` and of the side of a latent cell. None for a network that looks at the whole
        image, or at places in it, and cannot be given tiles.
        """
        ...

    @property
    def guidable(self) -> bool:
        """Whether it has a null latent, one that stands for none: context dropout and guidance need it."""
        ...

    def context(self, latent: Tensor, dropped: Bool[Tensor, " b"] | None = None) -> Context:
        """Reads latents; where `dropped` is true, the null latent instead."""
        ...

    def __call__(
        self,
        x: Float[Tensor, "b 3 h w"],
        u: Float[Tensor, " b"],
        stage: Stage,
        context: Context,
        below: Float[Tensor, "b 3 h//2 w//2"] | None,
    ) -> Float[Tensor, "b 3 h w"]:
        """Predicts at local times `u` of a stage; `below` is the clean image of the stage before, if any."""
        ...


class LadderDecoder(nn.Module):
    """A network, what it predicts, and its schedule."""

    network: Any

    def __init__(self, network: nn.Module, schedule: StageSchedule, prediction: PredictionKind) -> None:
        super().__init__()
        self.network = network
        self.schedule = schedule
        self.prediction = prediction

    @property
    def side_multiple(self) -> int:
        """Image sides must be multiples of this for every stage to fit the network."""
        return int(self.network.side_multiple) * self.schedule.multiple

    @property
    def guidable(self) -> bool:
        """Whether the network has a null latent."""
        return bool(self.network.guidable)

    def check_guidance(self, guidance: GuidanceConfig) -> None:
        """Checks that this decoder can be guided so.

        Raises:
            ConfigError: If it has no null latent, and the scale is not 1.
        """
        if not guidance.is_off and not self.guidable:
            raise ConfigError(
                f"Guidance scale {guidance.scale:g} does not fit a decoder without a null latent. Use scale 1, or a "
                "model that was trained with loss.context_dropout."
            )

    def context(self, latent: Tensor, dropped: Bool[Tensor, " b"] | None = None) -> Context:
        """Reads latents, once for a whole decode; where `dropped` is true, the null latent instead."""
        context = self.network.context(latent) if dropped is None else self.network.context(latent, dropped)
        assert isinstance(context, Context)
        return context

    def forward(
        self,
        x: Float[Tensor, "b 3 h w"],
        u: Float[Tensor, " b"],
        stage: Stage,
        context: Context,
        below: Float[Tensor, "b 3 h//2 w//2"] | None = None,
        *,
        unconditional: Context | None = None,
        guidance: GuidanceConfig = _NO_GUIDANCE,
        floor: float = NOISE_FLOOR,
    ) -> Prediction:
        """Predicts at local times `u` of a stage.

        Args:
            x: Noisy image at the scale of the stage.
            u: Local times, one for each image.
            stage: Which stage.
            context: From `context`.
            below: The clean image of the stage before, if any.
            unconditional: The context of null latents, where there is guidance.
            guidance: How the two are combined.
            floor: Clamps the noise level that x-prediction divides by.
        """
        out = self._look(x, u, stage, context, below, unconditional, guidance)
        return self._prediction(out, x, u, stage, floor)

    def denoiser(
        self,
        context: Context,
        *,
        unconditional: Context | None = None,
        guidance: GuidanceConfig = _NO_GUIDANCE,
        floor: float = NOISE_FLOOR,
        tile: int = 0,
    ) -> Denoiser:
        """The decoder as samplers and losses call it, with its contexts bound.

        Args:
            context: From `context`.
            unconditional: As in `forward`.
            guidance: As in `forward`.
            floor: As in `forward`.
            tile: A stage with a longer side than this is looked at in tiles of this side, but for the first stage of a
                ladder. A multiple of `side_multiple` and of the side of a latent cell; 0 for never.
        """

        def denoise(x: Tensor, u: Tensor, stage: Stage, below: Tensor | None) -> Prediction:
            def look(cut: Cut) -> Tensor:
                lower = None if below is None else cut(below)
                null = None if unconditional is None else _part(unconditional, cut)
                return self._look(cut(x), u, stage, _part(context, cut), lower, null, guidance)

            if not tile or max(x.shape[2:]) <= tile or self._sees_all(stage):
                out = look(lambda images: images)
            else:
                out = predict_in_tiles(look, x, side=tile, margin=self.network.tile_margin)
            return self._prediction(out, x, u, stage, floor)

        return denoise

    def guided(self, latent: Tensor, guidance: GuidanceConfig, *, tile: int = 0) -> Denoiser:
        """The denoiser of latents: reads them and, where guidance asks for it, the null latent.

        Args:
            latent: A batch of them.
            guidance: Of the decode; one that is off costs nothing.
            tile: As in `denoiser`.

        Raises:
            ConfigError: If this decoder cannot be guided so.
        """
        self.check_guidance(guidance)
        unconditional = None
        if not guidance.is_off:
            everything = torch.ones(latent.shape[0], dtype=torch.bool, device=latent.device)
            unconditional = self.context(latent, everything)
        return self.denoiser(self.context(latent), unconditional=unconditional, guidance=guidance, tile=tile)

    def evaluations(self, steps: int | Sequence[int], guidance: GuidanceConfig = _NO_GUIDANCE) -> tuple[int, ...]:
        """Network evaluations in each stage of a decode.

        Args:
            steps: Steps per stage, one number for all stages or one for each.
            guidance: Of the decode.
        """
        return evaluations_per_stage(guidance, self.schedule, steps)

    def _look(
        self,
        x: Tensor,
        u: Tensor,
        stage: Stage,
        context: Context,
        below: Tensor | None,
        unconditional: Context | None,
        guidance: GuidanceConfig,
    ) -> Tensor:
        """What the network says, guided, in float32."""
        coordinate = stage.coordinate(u)

        def look(seen: Context) -> Tensor:
            found: Tensor = self.network(x, u, stage, seen, below)
            return found.float()

        if unconditional is None:
            assert guidance.is_off, "guidance without the context of null latents"
            return look(context)
        return guide(guidance.scales(coordinate), lambda: look(context), lambda: look(unconditional))

    def _prediction(self, out: Tensor, x: Tensor, u: Tensor, stage: Stage, floor: float) -> Prediction:
        """What follows from what the network says."""
        if self.prediction == "clean":
            return Prediction(clean=out, velocity=lambda: velocity_from_clean(x, out, u, stage, floor=floor))
        return Prediction(clean=lambda: clean_from_velocity(x, out, u, stage), velocity=out)

    def _sees_all(self, stage: Stage) -> bool:
        """Whether a stage is never tiled: the first of several."""
        return stage.index == 0 and self.schedule.num_stages > 1


def _part(context: Context, cut: Cut) -> Context:
    """What a tile sees of a context."""
    return Context(features=cut(context.features), draft=None if context.draft is None else cut(context.draft))
