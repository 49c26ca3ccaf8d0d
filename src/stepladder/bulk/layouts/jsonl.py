"""What RAR and its kin train on: a line of code indices for each image.

    tokens-SHARD.jsonl    {"class_id": 7, "tokens": [...], "id": "..."}
    tokens.jsonl          all of them, once the job is done

With --flip, the mirrored image follows as a line of its own.

Reference: https://github.com/bytedance/1d-tokenizer, data/webdataset_reader.py (PretoeknizedDataSetJSONL)
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stepladder.bulk.layouts.base import EncodedShard, label_of
from stepladder.bulk.manifest import Entry
from stepladder.bulk.statistics import ChannelStatistics
from stepladder.bulk.store import Store

__all__ = ["JsonLinesLayout"]


class JsonLinesLayout:
    """`tokens-SHARD.jsonl` and `tokens.jsonl`."""

    wants_pictures = False
    needs_labels = True

    def write(self, shard: EncodedShard, folder: Path) -> dict[str, Any]:
        """Writes one file."""
        with (folder / _name(shard.name)).open("w", encoding="utf-8") as file:
            for row in shard.good:
                for values in (row.values, row.flipped):
                    if values is not None:
                        line = {"class_id": label_of(row), "tokens": values.long().flatten().tolist(), "id": row.id}
                        file.write(json.dumps(line) + "\n")
        return {}

    def finish(self, store: Store, entries: Sequence[Entry], statistics: ChannelStatistics) -> None:
        """Joins the files of all shards."""
        with store.workplace("tokens") as folder, (folder / "tokens.jsonl").open("wb") as file:
            for entry in entries:
                file.write(store.read(_name(entry.shard)))
            file.flush()
            store.publish(folder)


def _name(shard: str) -> str:
    return f"tokens-{shard}.jsonl"
