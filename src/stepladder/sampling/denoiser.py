"""The contract between samplers and networks: a denoiser returns the clean image.

    denoiser(x, u, stage, previous) -> Denoised(clean, features)

Everything else that a network needs (a latent, guidance, tiles) is bound before. Its result is passed to the next stage
as `previous`: the jump buries most of it in noise, but a network can read it from the clean image, as cascaded
diffusion models do (Ho et al., 2021, https://arxiv.org/abs/2106.15282), or from features.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from jaxtyping import Float
from torch import Tensor

from stepladder.sampling.stages import Stage

__all__ = ["Cut", "Denoised", "Denoiser", "SpatialDenoiser"]

Cut: TypeAlias = Callable[[Tensor], Tensor]
"""Cuts the same part out of a tensor on any grid that covers the image: pixels, half of them, cells of a latent."""


@dataclass(frozen=True, slots=True)
class Denoised:
    """What a denoiser returns."""

    clean: Float[Tensor, "b c h w"]
    """Estimate of the clean image at the scale of the stage."""
    features: tuple[Tensor, ...] = ()
    """Features for the same denoiser at the next stage, on grids that cover the image."""

    def detach(self) -> "Denoised":
        """The same without gradients."""
        return Denoised(self.clean.detach(), tuple(part.detach() for part in self.features))

    def cut(self, cut: Cut) -> "Denoised":
        """The same for a part of the image."""
        return Denoised(cut(self.clean), tuple(cut(part) for part in self.features))


class Denoiser(Protocol):
    """A network as the sampler calls it, or an exact solution in closed form."""

    def __call__(
        self, x: Float[Tensor, "b c h w"], u: Float[Tensor, " b"], stage: Stage, previous: Denoised | None
    ) -> Denoised:
        """Estimates the clean image.

        Args:
            x: Noisy image x_u at the scale of the stage.
            u: Local times in [0, 1], float32, one for each image; 1 at the start of the stage.
            stage: Which stage.
            previous: Result of the last evaluation of the stage before, at half the side; None at the first stage.
        """
        ...


class SpatialDenoiser(Denoiser, Protocol):
    """A denoiser that can be cut to a part of the image."""

    def cut(self, cut: Cut) -> Denoiser:
        """The denoiser of the part of the image that `cut` cuts out of tensors whose grids cover it."""
        ...
