"""Parquet, the canonical layout: one row for each image of the input, also for those that failed.

    id              names the image
    latent          its values, bytes in C order, little-endian; null where the image failed
    latent_flip     the same of the mirrored image, with --flip
    dtype, shape    of the values
    height, width   of the image, once it was cut
    model           fingerprint of the encoder
    error           why it failed; null where it did not
    ...             the other columns of the input, under their names; `input_NAME` where that is one of the above

`latents(row)` in the user's words: np.frombuffer(row["latent"], row["dtype"]).reshape(row["shape"]); of bfloat16,
torch.frombuffer with that dtype.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stepladder.bulk.layouts.base import EncodedShard
from stepladder.bulk.manifest import Entry
from stepladder.bulk.statistics import ChannelStatistics
from stepladder.bulk.store import Store
from stepladder.data.arrow import write_table

__all__ = ["ParquetLayout"]

_TYPES = {
    "id": "string",
    "latent": "binary",
    "latent_flip": "binary",
    "dtype": "string",
    "shape": "list<int32>",
    "height": "int32",
    "width": "int32",
    "model": "string",
    "error": "string",
}


class ParquetLayout:
    """`latents-SHARD.parquet`."""

    wants_pictures = False
    needs_labels = False

    def write(self, shard: EncodedShard, folder: Path) -> dict[str, Any]:
        """Writes one file."""
        rows = shard.rows
        columns: dict[str, list[Any]] = {
            "id": [row.id for row in rows],
            "latent": [_bytes(row.values) for row in rows],
            "dtype": [_dtype(row.values) for row in rows],
            "shape": [None if row.values is None else list(row.values.shape) for row in rows],
            "height": [row.size and row.size[0] for row in rows],
            "width": [row.size and row.size[1] for row in rows],
            "model": [shard.fingerprint] * len(rows),
            "error": [row.error for row in rows],
        }
        if shard.options.flip:
            columns["latent_flip"] = [_bytes(row.flipped) for row in rows]
        for name in dict.fromkeys(name for row in rows for name in row.columns):
            columns[f"input_{name}" if name in columns else name] = [row.columns.get(name) for row in rows]
        write_table(folder / f"latents-{shard.name}.parquet", columns, _TYPES)
        return {}

    def finish(self, store: Store, entries: Sequence[Entry], statistics: ChannelStatistics) -> None:
        """Nothing stands for all shards."""


def _bytes(values: Tensor | None) -> bytes | None:
    return None if values is None else values.contiguous().view(torch.uint8).numpy().tobytes()


def _dtype(values: Tensor | None) -> str | None:
    return None if values is None else str(values.dtype).removeprefix("torch.")
