"""The metrics of an evaluation: those that could be loaded, and their features of the originals."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stepladder.errors import MissingDependencyError
from stepladder.measure.metrics import FeatureStatistics, FrechetMetric, Metric
from stepladder.measure.metrics.base import FeatureNetwork, ImageMeasure

__all__ = ["Features", "Judges", "Originals", "digest", "first_seen"]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Originals:
    """What is to be known of a batch of originals; on the CPU."""

    digests: list[bytes]
    """Of each, in 8 bits: the same for the same image."""
    fresh: list[int]
    """Places of those that the process which looked had not seen before."""
    features: dict[str, Tensor]
    """Of these, by key of the distance."""


class Judges:
    """The metrics that can be computed here, and their features of the originals.

    Processes that share an evaluation `look` at batches of their own; one of them `take`s what they found, in order.
    """

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
        self._crops, self._images = crops, 0
        self._looked: set[bytes] = set()  # by this process
        self._seen: set[bytes] = set()  # of all that was taken in

    def look(self, references: Float[Tensor, "b 3 h w"]) -> Originals:
        """What is to be known of a batch of originals in [0, 1], of those that this process has not seen before."""
        digests = [digest(image) for image in references.cpu()]
        fresh = first_seen(digests, self._looked)
        taken = self.networks.items() if fresh else ()
        features = {key: network(references[fresh]).detach().cpu() for key, network in taken}
        return Originals(digests=digests, fresh=fresh, features=features)

    def take(self, originals: Originals) -> list[int]:
        """Takes in a batch, of whichever process; which of `originals.fresh` no process has seen before."""
        new = first_seen([originals.digests[place] for place in originals.fresh], self._seen)
        self.photographs += [(self._images + originals.fresh[row]) // self._crops for row in new]
        self._images += len(originals.digests)
        if new:
            for key, features in originals.features.items():
                self.originals[key].update(features[new])
        return new

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


def first_seen(digests: Sequence[bytes], seen: set[bytes]) -> list[int]:
    """Indices of the digests that are not in `seen`, to which they are added."""
    fresh = []
    for place, found in enumerate(digests):
        if found not in seen:
            seen.add(found)
            fresh.append(place)
    return fresh


def digest(image: Tensor) -> bytes:
    """Of one image: the same for the same values."""
    return hashlib.sha256(image.contiguous().numpy().tobytes()).digest()
