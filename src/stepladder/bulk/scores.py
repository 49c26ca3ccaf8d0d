"""Scores of decoded images against their originals, taken while they are decoded.

The metrics are those of `stepladder evaluate`, on images rounded to 8 bits. Values of each image are added up in the
entry of its shard; features for Frechet distances are kept in files beside the manifest, and taken together when the
job is done. A metric whose package or weights are missing, or that images are too small for, is left out.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from stepladder.bulk.manifest import Entry
from stepladder.bulk.store import JOB_FOLDER, Store
from stepladder.errors import MissingDependencyError
from stepladder.measure.evaluation import METRICS, MIN_SIZE
from stepladder.measure.metrics import FeatureStatistics, FrechetMetric, frechet_distance, quantise

__all__ = ["ShardScores", "total_scores"]


class ShardScores:
    """Scores of the images of one worker, shard by shard."""

    def __init__(self, device: torch.device) -> None:
        self._metrics: list[
            tuple[str, int, bool, Any]
        ] = []  # (key, smallest side, whether it gives features, function)
        for metric in METRICS:
            features = isinstance(metric, FrechetMetric)
            side = MIN_SIZE if isinstance(metric, FrechetMetric) else metric.min_side
            try:
                self._metrics.append((metric.key, side, features, metric.load(device)))
            except MissingDependencyError:
                continue
        self.begin()

    def begin(self) -> None:
        """Starts a shard."""
        self._sums: dict[str, list[float]] = {}
        self._features: dict[str, list[Tensor]] = {}

    @torch.no_grad()
    def add(self, images: Tensor, originals: Tensor) -> None:
        """Takes in a batch, both (B, 3, H, W) in [-1, 1]."""
        images, originals = quantise(images), quantise(originals.to(images.device))
        for key, side, features, measure in self._metrics:
            if min(images.shape[-2:]) < side:
                continue
            if features:
                for name, batch in (("decoded", images), ("originals", originals)):
                    self._features.setdefault(f"{key} {name}", []).append(measure(batch).float().cpu())
            else:
                values = measure(images, originals)
                count, total = self._sums.get(key, [0.0, 0.0])
                self._sums[key] = [count + len(values), total + float(values.cpu().double().sum())]

    def end(self, shard: str, folder: Path) -> dict[str, Any]:
        """Writes the features of the shard; what its entry says of it."""
        if self._features:
            path = folder / _name(shard)
            path.parent.mkdir(parents=True)
            path.write_bytes(save({name: torch.cat(parts) for name, parts in self._features.items()}))
        return dict(self._sums)


def total_scores(store: Store, entries: Sequence[Entry]) -> dict[str, float]:
    """The scores over all shards."""
    sums: dict[str, list[float]] = {}
    statistics: dict[str, FeatureStatistics] = {}
    for entry in entries:
        for key, (count, total) in entry.statistics.items():
            before = sums.get(key, [0.0, 0.0])
            sums[key] = [before[0] + count, before[1] + total]
        if _name(entry.shard) in entry.files:
            for name, features in load(store.read(_name(entry.shard))).items():
                statistics.setdefault(name, FeatureStatistics()).update(features)
    scores = {key: total / count for key, (count, total) in sums.items()}
    for metric in METRICS:
        pair = [statistics.get(f"{metric.key} {name}") for name in ("originals", "decoded")]
        if pair[0] is not None and pair[1] is not None and pair[0].count > 1:
            scores[metric.key] = frechet_distance(pair[0], pair[1])
    return scores


def _name(shard: str) -> str:
    return f"{JOB_FOLDER}/features/{shard}.safetensors"
