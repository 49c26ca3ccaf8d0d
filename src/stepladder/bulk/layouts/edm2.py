"""What EDM2, REPA and the forks of SiT after REPA train on: an array for each image, and one list of labels.

    vae-sd/SHARD/img-mean-std-NNNNN.npy    (2c, h, w): mean, then standard deviation
    vae-sd/dataset.json                    {"labels": [["SHARD/img-mean-std-NNNNN.npy", 7], ...]}, or null without any
    images/SHARD/imgNNNNN.png              the image that was encoded, for the features of REPA

The folder vae-sd is a data set of EDM2; the output as a whole is one of REPA. A deterministic encoder has standard
deviation zero.

Reference: https://github.com/NVlabs/edm2, dataset_tool.py; https://github.com/sihyun-yu/REPA, dataset.py
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stepladder.bulk.layouts.base import EncodedShard, array
from stepladder.bulk.manifest import Entry
from stepladder.bulk.statistics import ChannelStatistics
from stepladder.bulk.store import Store

__all__ = ["Edm2Layout"]


class Edm2Layout:
    """Folders `vae-sd` and `images`."""

    wants_pictures = True
    needs_labels = True

    def write(self, shard: EncodedShard, folder: Path) -> dict[str, Any]:
        """Writes two files for each image."""
        features, pictures = folder / "vae-sd" / shard.name, folder / "images" / shard.name
        features.mkdir(parents=True)
        pictures.mkdir(parents=True)
        labels = []
        for place, row in enumerate(shard.good):
            name = f"img-mean-std-{place:05d}.npy"
            np.save(features / name, array(row.values))
            assert row.picture is not None
            image = Image.fromarray(row.picture.permute(1, 2, 0).contiguous().numpy())
            image.save(pictures / f"img{place:05d}.png", compress_level=0)
            labels.append([f"{shard.name}/{name}", row.label])
        return {"labels": labels}

    def finish(self, store: Store, entries: Sequence[Entry], statistics: ChannelStatistics) -> None:
        """Writes the labels, if every image has one."""
        labels = [label for entry in entries for label in entry.index["labels"]]
        known = labels if all(label is not None for _, label in labels) else None
        store.write_text("vae-sd/dataset.json", json.dumps({"labels": known}))
