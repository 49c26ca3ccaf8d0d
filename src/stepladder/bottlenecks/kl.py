"""The variational bottleneck: a diagonal Gaussian for each position or token, pulled towards the standard normal.

    KL(N(m, s^2) || N(0, 1)) = (m^2 + s^2 - log s^2 - 1) / 2

Reference: Auto-Encoding Variational Bayes (Kingma & Welling, 2013), https://arxiv.org/abs/1312.6114; as the first
stage of latent diffusion: Rombach et al. (2021), https://arxiv.org/abs/2112.10752
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from stepladder.bottlenecks.base import Bottleneck, BottleneckOutput, channel_dim
from stepladder.bottlenecks.posterior import GaussianPosterior
from stepladder.configs import check_between

__all__ = ["KLBottleneck", "KLConfig"]


@dataclass(frozen=True, kw_only=True)
class KLConfig:
    """A variational latent."""

    kind: Literal["kl"] = "kl"
    """Which bottleneck."""
    weight: float = 1e-6
    """Weight of the divergence, averaged over the values of the latent, in the training loss; at least 0."""

    def __post_init__(self) -> None:
        check_between(self, 0, 10**6, "weight", where="KL", usual="1e-6 to 1e-3")


class KLBottleneck(Bottleneck):
    """Samples in training mode, takes the mean afterwards; both are normalised to unit scale."""

    def __init__(self, config: KLConfig, channels: int) -> None:
        super().__init__(channels, in_channels=2 * channels)
        self.config = config

    def forward(self, features: Float[Tensor, "b ..."], generator: torch.Generator | None = None) -> BottleneckOutput:
        """Returns latent, divergence and posterior.

        Raises:
            ValueError: If the module is in training mode and no generator is given.
        """
        mean, log_variance = features.float().chunk(2, dim=channel_dim(features))
        posterior = GaussianPosterior(mean=mean, log_variance=log_variance.clamp(-30, 20))
        if self.training:
            if generator is None:
                raise ValueError("A variational bottleneck in training mode draws noise. Pass a generator.")
            raw = posterior.sample(generator)
        else:
            raw = posterior.mean
        loss = self.config.weight * posterior.divergence()
        return BottleneckOutput(latent=self.scale(raw), loss=loss, posterior=posterior)
