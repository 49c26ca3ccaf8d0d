"""The normal distribution of a variational latent."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stepladder.sampling.randomness import normal

__all__ = ["GaussianPosterior"]


@dataclass(frozen=True, slots=True)
class GaussianPosterior:
    """Diagonal Gaussian over the latent before normalisation."""

    mean: Float[Tensor, "b ..."]
    log_variance: Float[Tensor, "b ..."]

    def sample(self, generator: torch.Generator) -> Float[Tensor, "b ..."]:
        """One draw by reparametrisation: mean + sigma noise."""
        return self.mean + (0.5 * self.log_variance).exp() * normal(self.mean.shape, generator).to(self.mean.dtype)

    def divergence(self) -> Float[Tensor, ""]:
        """KL divergence from the standard normal in nats, averaged over all values."""
        return 0.5 * (self.mean.square() + self.log_variance.exp() - self.log_variance - 1).mean()
