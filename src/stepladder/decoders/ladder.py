"""From a network to a denoiser on a ladder.

A network sees a noisy image, the global noise coordinate, the scale, and a context that it made once from the latent.
What it returns means, by config:

    "clean"      X, the clean image at the scale of the stage (x-prediction, the default)
    "velocity"   w = x_start - x_end

and this module turns either into the other, so that samplers and losses always get both. x-prediction is the default
because a network on large patches predicts smooth images far better than white noise.

Large images are looked at in tiles (`tiling`), but for the first stage of a ladder, which is small: there the decoder
sees the image as a whole. A ladder with K = 1 has no such stage, and its only one is tiled.

Reference: Back to Basics: Let Denoising Generative Models Denoise (Li & He, 2025), https://arxiv.org/abs/2511.13720
"""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from jaxtyping import Float
from torch import Tensor, nn

from stepladder.decoders.tiling import Cut, predict_in_tiles
from stepladder.samplers import Denoiser, Prediction
from stepladder.stages import NOISE_FLOOR, Stage, StageSchedule, clean_from_velocity, velocity_from_clean

__all__ = ["Context", "DecoderNetwork", "LadderDecoder", "Prediction", "PredictionKind"]

PredictionKind = Literal["clean", "velocity"]


@dataclass(frozen=True, slots=True)
class Context:
    """What a network made of a latent, once for a whole decode."""

    features: Float[Tensor, "b ..."]
    """Features of the latent, on its own grid."""
    draft: Float[Tensor, "b 3 H W"]
    """A first image, straight from the latent and without noise: what the network refines."""


class DecoderNetwork(Protocol):
    """A network that can stand in a ladder. It knows neither stages nor samplers."""

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

    def context(self, latent: Tensor) -> Context:
        """Reads a latent."""
        ...

    def __call__(
        self,
        x: Float[Tensor, "b 3 h w"],
        coordinate: Float[Tensor, " b"],
        downscale: int,
        context: Context,
        below: Float[Tensor, "b 3 h//2 w//2"] | None,
    ) -> Float[Tensor, "b 3 h w"]:
        """Predicts at one scale.

        `coordinate` is the global noise coordinate in [0, 1], `below` the clean image of the stage before, if any.
        """
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

    def context(self, latent: Tensor) -> Context:
        """Reads a latent, once for a whole decode."""
        context = self.network.context(latent)
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
        floor: float = NOISE_FLOOR,
    ) -> Prediction:
        """Predicts at local times `u` of a stage.

        `below` is the clean image of the stage before, if any; `floor` clamps the noise level that x-prediction divides
        by.
        """
        out = self.network(x, stage.coordinate(u), stage.downscale, context, below).float()
        if self.prediction == "clean":
            return Prediction(clean=out, velocity=velocity_from_clean(x, out, u, stage, floor=floor))
        return Prediction(clean=clean_from_velocity(x, out, u, stage), velocity=out)

    def denoiser(self, context: Context, *, floor: float = NOISE_FLOOR, tile: int = 0) -> Denoiser:
        """The decoder as samplers and losses call it, with the context bound.

        Args:
            context: From `context`.
            floor: As in `forward`.
            tile: A stage with a longer side than this is looked at in tiles of this side, but for the first stage of a
                ladder. A multiple of `side_multiple` and of the side of a latent cell; 0 for never.
        """

        def denoise(x: Tensor, u: Tensor, stage: Stage, below: Tensor | None) -> Prediction:
            def predict(cut: Cut) -> Prediction:
                part = Context(features=cut(context.features), draft=cut(context.draft))
                prediction: Prediction = self(
                    cut(x), u, stage, part, None if below is None else cut(below), floor=floor
                )
                return prediction

            if not tile or max(x.shape[2:]) <= tile or self._sees_all(stage):
                return predict(lambda images: images)
            return predict_in_tiles(predict, x, side=tile, margin=self.network.tile_margin)

        return denoise

    def _sees_all(self, stage: Stage) -> bool:
        """Whether a stage is never tiled: the first of several."""
        return stage.index == 0 and self.schedule.num_stages > 1
