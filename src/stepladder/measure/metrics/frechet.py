"""Frechet distance between two sets of features, each taken as a Gaussian.

    FD = |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2)

With C1 = L L', the matrix L' C2 L is symmetric, positive semi-definite, and its eigenvalues are those of C1 C2 that
are not zero. Hence the last trace is the sum of their square roots: two symmetric eigenvalue problems, no root of a
non-symmetric matrix. L has as many columns as C1 has rank, so singular covariances, as from fewer images than features,
are no special case, and cheap. It is cached, so further distances to the same originals are cheap.

Everything is float64. Means and covariances are accumulated batch by batch around the running mean (Chan et al., 1979),
so that nothing cancels.

The distance is biased upwards for few images: compare values over the same images only. Its name must say the network:
rFID with the standard Inception weights, FD-(network) otherwise.

Reference: GANs Trained by a Two Time-Scale Update Rule (Heusel et al., 2017), https://arxiv.org/abs/1706.08500
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from stepladder.errors import ConfigError

__all__ = ["FeatureStatistics", "frechet_distance"]


class FeatureStatistics:
    """Mean and covariance of features that come in batches."""

    def __init__(self) -> None:
        self.count = 0
        self._mean = torch.zeros(0, dtype=torch.float64)
        self._scatter = torch.zeros(0, 0, dtype=torch.float64)
        self._factor: Tensor | None = None

    def update(self, features: Float[Tensor, "b d"]) -> None:
        """Adds a batch of features of shape (B, D); B = 0 adds nothing.

        Raises:
            ConfigError: If D is not that of the batches before.
        """
        features = features.detach().cpu().double()  # some accelerators have no double precision
        if not len(features):
            return
        if not self.count:
            self._mean = features.new_zeros(features.shape[1])
            self._scatter = features.new_zeros(features.shape[1], features.shape[1])
        if features.ndim != 2 or features.shape[1] != len(self._mean):
            raise ConfigError(
                f"Features of shape {tuple(features.shape)} after features of {len(self._mean)} dimensions. Shape "
                "(B, D) with one D is needed. Use one feature network."
            )
        total = self.count + len(features)
        mean = features.mean(dim=0)
        centred, step = features - mean, mean - self._mean
        self._scatter += centred.T @ centred + torch.outer(step, step) * (self.count * len(features) / total)
        self._mean += step * (len(features) / total)
        self.count = total
        self._factor = None

    @property
    def mean(self) -> Float[Tensor, " d"]:
        """Mean of all features, float64."""
        return self._mean

    @property
    def covariance(self) -> Float[Tensor, "d d"]:
        """Unbiased covariance of all features, float64.

        Raises:
            ConfigError: If there are fewer than two features.
        """
        if self.count < 2:
            raise ConfigError(
                f"A covariance of {self.count} images. At least 2 are needed. Evaluate more, and different, images."
            )
        return self._scatter / (self.count - 1)

    @property
    def factor(self) -> Float[Tensor, "d r"]:
        """L with L L' = covariance, of full column rank r, float64."""
        if self._factor is None:
            values, vectors = torch.linalg.eigh(self.covariance)
            kept = values > len(values) * torch.finfo(torch.float64).eps * values[-1]
            self._factor = vectors[:, kept] * values[kept].sqrt()
        return self._factor


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """Frechet distance between two sets of features; finite, at least 0, symmetric.

    Raises:
        ConfigError: If a set has fewer than two features, or their dimensions differ.
    """
    c1, c2 = first.covariance, second.covariance
    if c1.shape != c2.shape:
        raise ConfigError(
            f"A Frechet distance between features of {len(c1)} and of {len(c2)} dimensions. One feature network must "
            "give both. Use the same network."
        )
    overlap = torch.linalg.eigvalsh(first.factor.T @ c2 @ first.factor).clamp(min=0).sqrt().sum()
    distance = (first.mean - second.mean).square().sum() + c1.trace() + c2.trace() - 2 * overlap
    return max(0.0, float(distance))
