"""The uncertainty of a Frechet distance over few images, and of the difference of two: bootstrap intervals.

Photographs are resampled with replacement, as many as there are, again and again; s is the standard deviation of the
distances of the resamples:

    interval = FD +- 1.96 s                                   (95 %, the standard interval)

All crops of a photograph are drawn together, and so are an original and its reconstruction, because they are not
independent. Quantiles of the resampled distances would be biased: a resample holds only 63 % of the photographs, and a
Frechet distance is larger for fewer images, so all of them lie above the FD of the whole.

The interval covers the choice of photographs. It does not cover the bias that all these distances share: compare
distances over the same images only. The difference of two models on the same photographs is more certain than their
intervals suggest, and has an interval of its own, with s of the differences of their resamples:

    interval = FD_2 - FD_1 +- 1.96 s                          if it excludes 0, the difference is not one of photographs

A drawn distance needs no covariance. With n weighted, centred rows A and B, C1 = A'A/(n-1) and C2 = B'B/(n-1),

    tr (C1 C2)^(1/2) = |A B'|_* / (n-1)                       the sum of singular values

which is cheap, as the rows are as many as the different images that were drawn.

Reference: An Introduction to the Bootstrap (Efron & Tibshirani, 1993), chapters 6 and 13.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepladder.errors import ConfigError

__all__ = ["difference_interval", "frechet_interval", "frechet_resamples"]

_NORMAL = 1.959964
"""Of the normal distribution, 95 % lie within so many standard deviations."""


def frechet_resamples(
    first: Float[Tensor, "n d"],
    second: Float[Tensor, "n d"],
    groups: Int[Tensor, " n"],
    *,
    resamples: int,
    seed: int = 0,
) -> Float[Tensor, " resamples"]:
    """Frechet distances over photographs that are drawn anew, again and again.

    Args:
        first: Features of originals.
        second: Features of their reconstructions, in the same order.
        groups: Of which photograph each is, any numbers.
        resamples: How often photographs are drawn; at least 2.
        seed: The same seed draws the same photographs, so that models are compared on the same ones.

    Raises:
        ConfigError: If there are fewer than two photographs, or two resamples.
    """
    _, places = groups.unique(return_inverse=True)
    count = int(places.max()) + 1 if len(places) else 0
    if count < 2 or resamples < 2:
        raise ConfigError(
            f"A bootstrap interval of {count} photographs, drawn {resamples} times. At least 2 of both are needed. "
            "Evaluate more photographs, or pass a larger --bootstrap."
        )
    generator = torch.Generator().manual_seed(seed)
    a, b = first.double(), second.double()
    drawn = []
    for _ in range(resamples):
        picks = torch.randint(count, (count,), generator=generator)
        weights = torch.bincount(picks, minlength=count)[places].double()
        drawn.append(_distance(a, b, weights))
    return torch.tensor(drawn, dtype=torch.float64)


def frechet_interval(distance: float, drawn: Float[Tensor, " resamples"]) -> tuple[float, float]:
    """The 95 % interval of a Frechet distance, of its resamples."""
    spread = _spread(drawn)
    return max(0.0, distance - spread), distance + spread


def difference_interval(
    difference: float, drawn: Float[Tensor, " resamples"], others: Float[Tensor, " resamples"]
) -> tuple[float, float]:
    """The 95 % interval of what a Frechet distance is above another one, of resamples of the same photographs."""
    spread = _spread(drawn - others)
    return difference - spread, difference + spread


def _spread(drawn: Tensor) -> float:
    return _NORMAL * drawn.std().item()


def _distance(first: Tensor, second: Tensor, weights: Tensor) -> float:
    """The Frechet distance of rows that count as often as their weights say."""
    kept = weights > 0
    weight, total = weights[kept, None], weights.sum()
    rows, means = [], []
    for features in (first[kept], second[kept]):
        means.append((weight * features).sum(dim=0) / total)
        rows.append(weight.sqrt() * (features - means[-1]))
    traces = sum(each.square().sum() for each in rows)
    if len(rows[0]) > rows[0].shape[1]:  # more images than features: the triangular factors have the same product
        rows = [torch.linalg.qr(each, mode="r").R for each in rows]
    overlap = torch.linalg.matrix_norm(rows[0] @ rows[1].T, ord="nuc")
    return float((means[0] - means[1]).square().sum() + (traces - 2 * overlap) / (total - 1))
