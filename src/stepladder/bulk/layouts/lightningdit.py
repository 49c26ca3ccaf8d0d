"""What LightningDiT trains on: safetensors shards and the statistics of their channels.

    latents_SHARD.safetensors   latents, latents_flip (n, c, h, w); labels (n,), int64
    latents_stats.pt            {"mean", "std"}, each (1, c, 1, 1), over all images

Its data set takes every *.safetensors of the folder, tosses a coin between the two latents, and normalises.

Reference: https://github.com/hustvl/LightningDiT, datasets/img_latent_dataset.py
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from stepladder.bulk.layouts.base import EncodedShard, label_of
from stepladder.bulk.manifest import Entry
from stepladder.bulk.statistics import ChannelStatistics
from stepladder.bulk.store import Store

__all__ = ["LightningDiTLayout"]


class LightningDiTLayout:
    """`latents_SHARD.safetensors` and `latents_stats.pt`."""

    wants_pictures = False
    needs_labels = True

    def write(self, shard: EncodedShard, folder: Path) -> dict[str, Any]:
        """Writes one file; none for a shard without a good image."""
        if shard.good:
            tensors = {
                "latents": torch.stack([row.values for row in shard.good if row.values is not None]),
                "latents_flip": torch.stack([row.flipped for row in shard.good if row.flipped is not None]),
                "labels": torch.tensor([label_of(row) for row in shard.good]),
            }
            (folder / f"latents_{shard.name}.safetensors").write_bytes(save(tensors))
        return {}

    def finish(self, store: Store, entries: Sequence[Entry], statistics: ChannelStatistics) -> None:
        """Writes the statistics."""
        found = {"mean": statistics.mean, "std": statistics.std}
        with store.workplace("statistics") as folder:
            with (folder / "latents_stats.pt").open("wb") as file:
                torch.save({name: value.float().view(1, -1, 1, 1) for name, value in found.items()}, file)
            store.publish(folder)
