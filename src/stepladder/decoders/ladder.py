"""From a network to a denoiser on a ladder.

A network sees a noisy image, the global noise coordinate, the scale, and a context that it made once from the latent.
What it returns means, by config:

    "clean"      X, the clean image at the scale of the stage (x-prediction, the default)
    "velocity"   w = x_start - x_end

and this module turns either into the other, so that samplers and losses always get both. x-prediction is the default
because a network on large patches predicts smooth images far better than white noise.

Reference: Back to Basics: Let Denoising Generative Models Denoise (Li & He, 2025), https://arxiv.org/abs/2511.13720
"""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from jaxtyping import Float
from torch import Tensor, nn

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

    def context(self, latent: Tensor) -> Context:
        """Reads a latent."""
        ...

    def __call__(
        self, x: Float[Tensor, "b 3 h w"], coordinate: Float[Tensor, " b"], downscale: int, context: Context
    ) -> Float[Tensor, "b 3 h w"]:
        """Predicts at one scale; `coordinate` is the global noise coordinate in [0, 1]."""
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
        *,
        floor: float = NOISE_FLOOR,
    ) -> Prediction:
        """Predicts at local times `u` of a stage; `floor` clamps the noise level that x-prediction divides by."""
        out = self.network(x, stage.coordinate(u), stage.downscale, context).float()
        if self.prediction == "clean":
            return Prediction(clean=out, velocity=velocity_from_clean(x, out, u, stage, floor=floor))
        return Prediction(clean=clean_from_velocity(x, out, u, stage), velocity=out)

    def denoiser(self, context: Context, *, floor: float = NOISE_FLOOR) -> Denoiser:
        """The decoder as samplers and losses call it, with the context bound."""

        def denoise(x: Tensor, u: Tensor, stage: Stage) -> Prediction:
            prediction: Prediction = self(x, u, stage, context, floor=floor)
            return prediction

        return denoise
