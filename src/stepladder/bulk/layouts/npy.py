"""What fast-DiT and its kin train on: one array for each image and one for its label, under the same name.

    features/SHARD-NNNNN.npy    (1, c, h, w)
    labels/SHARD-NNNNN.npy      (1,), int64
    flipped/SHARD-NNNNN.npy     as features, of the mirrored image, with --flip
    ids-SHARD.json              names of the images, in the order of their numbers

Reference: https://github.com/chuanyangjin/fast-DiT, train.py (CustomDataset)
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stepladder.bulk.layouts.base import EncodedShard, array, label_of
from stepladder.bulk.manifest import Entry
from stepladder.bulk.statistics import ChannelStatistics
from stepladder.bulk.store import Store

__all__ = ["NpyLayout"]


class NpyLayout:
    """Folders `features` and `labels`."""

    wants_pictures = False
    needs_labels = True

    def write(self, shard: EncodedShard, folder: Path) -> dict[str, Any]:
        """Writes two files for each image, three with the mirrored one."""
        for name in ("features", "labels", *(("flipped",) if shard.options.flip else ())):
            (folder / name).mkdir()
        for place, row in enumerate(shard.good):
            name = f"{shard.name}-{place:05d}.npy"
            np.save(folder / "features" / name, array(row.values)[None])
            np.save(folder / "labels" / name, np.array([label_of(row)], np.int64))
            if shard.options.flip:
                np.save(folder / "flipped" / name, array(row.flipped)[None])
        (folder / f"ids-{shard.name}.json").write_text(json.dumps([row.id for row in shard.good]), "utf-8")
        return {}

    def finish(self, store: Store, entries: Sequence[Entry], statistics: ChannelStatistics) -> None:
        """Nothing stands for all shards."""
