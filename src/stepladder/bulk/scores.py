"""Scores of decoded images against their originals, taken while they are decoded.

Values of each image are added up in the entry of its shard; features for the Frechet distance are kept in files beside
the manifest, float32, and taken together when the job is done. All metrics are taken on images rounded to 8 bits, as in
`stepladder evaluate`.
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
from stepladder.losses import feature_network
from stepladder.measure.metrics import FeatureStatistics, colour_shift, frechet_distance, psnr, quantise, ssim
from stepladder.measure.metrics.pixels import SSIM_WINDOW

__all__ = ["FRECHET", "ShardScores", "total_scores"]

FRECHET = "fd_efficientnet_lite0"
_NETWORK_SIDE = 32
"""Smallest side that the feature network takes."""


class ShardScores:
    """Scores of the images of one worker, shard by shard."""

    def __init__(self, device: torch.device) -> None:
        try:
            self._network: Any = feature_network(device=device)
        except MissingDependencyError:
            self._network = None
        self.begin()

    def begin(self) -> None:
        """Starts a shard."""
        self._sums: dict[str, list[float]] = {}
        self._features: dict[str, list[Tensor]] = {"decoded": [], "originals": []}

    @torch.no_grad()
    def add(self, images: Tensor, originals: Tensor) -> None:
        """Takes in a batch, both (B, 3, H, W) in [-1, 1]."""
        images, originals = quantise(images), quantise(originals.to(images.device))
        side = min(images.shape[-2:])
        values = {"psnr_db": psnr(images, originals), "colour_shift": colour_shift(images, originals)}
        if side >= SSIM_WINDOW:
            values["ssim"] = ssim(images, originals)
        for name, each in values.items():
            count, total = self._sums.get(name, [0.0, 0.0])
            self._sums[name] = [count + len(each), total + float(each.double().sum())]
        if self._network is not None and side >= _NETWORK_SIDE:
            for name, batch in (("decoded", images), ("originals", originals)):
                self._features[name].append(self._network.pooled(batch * 2 - 1).float().cpu())

    def end(self, shard: str, folder: Path) -> dict[str, Any]:
        """Writes the features of the shard; what its entry says of it."""
        if self._features["decoded"]:
            path = folder / _name(shard)
            path.parent.mkdir(parents=True)
            path.write_bytes(save({name: torch.cat(parts) for name, parts in self._features.items()}))
        return dict(self._sums)


def total_scores(store: Store, entries: Sequence[Entry]) -> dict[str, float]:
    """The scores over all shards."""
    sums: dict[str, list[float]] = {}
    statistics = {name: FeatureStatistics() for name in ("decoded", "originals")}
    for entry in entries:
        for name, (count, total) in entry.statistics.items():
            before = sums.get(name, [0.0, 0.0])
            sums[name] = [before[0] + count, before[1] + total]
        if _name(entry.shard) in entry.files:
            for name, features in load(store.read(_name(entry.shard))).items():
                statistics[name].update(features)
    scores = {name: total / count for name, (count, total) in sums.items()}
    if statistics["decoded"].count > 1:
        scores[FRECHET] = frechet_distance(statistics["originals"], statistics["decoded"])
    return scores


def _name(shard: str) -> str:
    return f"{JOB_FOLDER}/features/{shard}.safetensors"
