"""The metrics of an evaluation: those that could be loaded, and their features of the originals."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from stepladder.errors import MissingDependencyError
from stepladder.measure.metrics import FeatureStatistics, FrechetMetric, Metric
from stepladder.measure.metrics.base import FeatureNetwork, ImageMeasure

__all__ = ["Features", "Judges", "first_seen"]


class Features:
    """Features of different images, as they come: their statistics, and, where an interval needs them, themselves."""

    def __init__(self, *, keep: bool) -> None:
        self.statistics = FeatureStatistics()
        self._keep = keep
        self._parts: list[Tensor] = []

    def update(self, features: Float[Tensor, "b d"]) -> None:
        """Adds a batch."""
        self.statistics.update(features)
        if self._keep:
            self._parts.append(features.detach().float().cpu())

    @property
    def all(self) -> Float[Tensor, "n d"]:
        """All of them, in the order in which they came; they must have been kept."""
        return torch.cat(self._parts)


class Judges:
    """The metrics that can be computed here, and their features of the originals."""

    def __init__(self, metrics: Sequence[Metric], *, size: int, crops: int, keep: bool, device: torch.device) -> None:
        self.metrics = metrics
        self.measures: dict[str, ImageMeasure] = {}
        """Of images, by key."""
        self.networks: dict[str, FeatureNetwork] = {}
        """Of Frechet distances, by key."""
        self.notes: dict[str, str] = {}
        """Why a metric is missing, by key."""
        for metric in metrics:
            try:
                self._load(metric, size, device)
            except MissingDependencyError as error:
                self.notes[metric.key] = str(error)
        self.keep = keep
        """Whether features are kept for intervals."""
        self.originals = {key: Features(keep=keep) for key in self.networks}
        """Features of different originals, by key of the distance."""
        self.photographs: list[int] = []
        """The photograph of which each of these is a crop."""
        self.fresh: list[int] = []
        """Indices in the batch of originals that were not seen before."""
        self._crops, self._images = crops, 0
        self._seen: set[bytes] = set()

    def see(self, references: Float[Tensor, "b 3 h w"]) -> None:
        """Looks at a batch of originals in [0, 1]."""
        self.fresh = first_seen(references, self._seen)
        self.photographs += [(self._images + place) // self._crops for place in self.fresh]
        self._images += len(references)
        if self.fresh:
            for key, network in self.networks.items():
                self.originals[key].update(network(references[self.fresh]))

    def caveats(self) -> dict[str, str]:
        """Caveats of Frechet distances over this many images."""
        notes, count = {}, len(self.photographs)
        for key, features in self.originals.items():
            dimensions = len(features.statistics.mean)
            if count < 2:
                notes[key] = f"needs at least 2 different images; there is {count}"
            elif count <= dimensions:
                notes[key] = (
                    f"over {count} different images of {self._images}, fewer than its {dimensions} features: compare "
                    "it over the same images only"
                )
            elif count < self._images:
                notes[key] = f"over the {count} different images of {self._images}"
        return notes

    def _load(self, metric: Metric, size: int, device: torch.device) -> None:
        if isinstance(metric, FrechetMetric):
            self.networks[metric.key] = metric.load(device)
        elif size < metric.min_side:
            self.notes[metric.key] = f"needs images of side {metric.min_side} or more; these have {size}"
        else:
            self.measures[metric.key] = metric.load(device)


def first_seen(images: Tensor, seen: set[bytes]) -> list[int]:
    """Indices of the images whose digests are not in `seen`, to which they are added."""
    fresh = []
    for place, image in enumerate(images.cpu()):
        digest = hashlib.sha256(image.contiguous().numpy().tobytes()).digest()
        if digest not in seen:
            seen.add(digest)
            fresh.append(place)
    return fresh
