"""MosaicML streaming: MDS shards and their index.

    SHARD.mds     uint32 n, uint32 offsets[n + 1], configuration (JSON), then the samples
    sample        uint32 sizes of the columns without a fixed one, then the columns in the order of their names
    index.json    {"version": 2, "shards": [configuration, file, size and samples of each]}

Columns: id (str), latent (ndarray), latent_flip with --flip, label (int, -1 for none), columns (JSON). The library of
the format needs torchvision, whose builds are tied to those of torch, so the few bytes around the arrays are written
here. `streaming.StreamingDataset` reads the folder.

Reference: https://github.com/mosaicml/streaming, streaming/base/format/mds
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stepladder.bulk.layouts.base import EncodedRow, EncodedShard, array
from stepladder.bulk.manifest import Entry
from stepladder.bulk.statistics import ChannelStatistics
from stepladder.bulk.store import Store

__all__ = ["MdsLayout"]

_CODE_OF_UINT32 = 2
"""How the format writes that the sides of an array are uint32."""


class MdsLayout:
    """`SHARD.mds` and `index.json`."""

    wants_pictures = False
    needs_labels = True

    def write(self, shard: EncodedShard, folder: Path) -> dict[str, Any]:
        """Writes one file; none for a shard without a good image."""
        if not shard.good:
            return {}
        flip = shard.options.flip
        kind = f"ndarray:{array(shard.good[0].values).dtype}"
        encodings = {"columns": "json", "id": "str", "label": "int", "latent": kind}
        if flip:
            encodings["latent_flip"] = kind
        config = {
            "version": 2,
            "format": "mds",
            "compression": None,
            "hashes": [],
            "size_limit": None,
            "column_names": list(encodings),
            "column_encodings": list(encodings.values()),
            "column_sizes": [8 if name == "label" else None for name in encodings],
        }
        head = json.dumps(config, sort_keys=True).encode()
        samples = [_sample(row, shard, flip) for row in shard.good]
        first = 4 + 4 * (len(samples) + 1) + len(head)
        offsets = first + np.cumsum([0, *map(len, samples)])
        name = f"{shard.name}.mds"
        with (folder / name).open("wb") as file:
            file.write(np.uint32(len(samples)).tobytes() + offsets.astype("<u4").tobytes() + head)
            file.writelines(samples)
        data = {"basename": name, "bytes": int(offsets[-1]), "hashes": {}}
        return {"shard": {**config, "samples": len(samples), "raw_data": data, "zip_data": None}}

    def finish(self, store: Store, entries: Sequence[Entry], statistics: ChannelStatistics) -> None:
        """Writes the index."""
        shards = [entry.index["shard"] for entry in entries if entry.index]
        store.write_text("index.json", json.dumps({"version": 2, "shards": shards}, sort_keys=True))


def _sample(row: EncodedRow, shard: EncodedShard, flip: bool) -> bytes:
    assert row.size is not None
    about = {"height": row.size[0], "width": row.size[1], "model": shard.fingerprint}
    label = np.int64(-1 if row.label is None else row.label).tobytes()
    parts = [json.dumps({**row.columns, **about}, default=str).encode(), row.id.encode(), label, _array(row.values)]
    if flip:
        parts.append(_array(row.flipped))
    sizes = [len(part) for place, part in enumerate(parts) if place != 2]
    return np.array(sizes, "<u4").tobytes() + b"".join(parts)


def _array(values: Any) -> bytes:
    """Rank and type of the sides in one byte, sides, then values."""
    found = array(values)
    sides = np.array(found.shape, "<u4").tobytes()
    return bytes([found.ndim << 2 | _CODE_OF_UINT32]) + sides + found.tobytes()
