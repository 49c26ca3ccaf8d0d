"""WebDataset shards of latents.

    latents-SHARD.tar    for each image: KEY.latent.npy, KEY.flip.npy with --flip, KEY.cls where it has a label, and
                         KEY.json with its id, size, the fingerprint of the model and the other columns of the input

Keys are SHARD-NNNNN: a key of WebDataset has no dots, and the ids of images do.

Reference: https://github.com/webdataset/webdataset
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stepladder.bulk.layouts.base import EncodedShard, array
from stepladder.bulk.manifest import Entry
from stepladder.bulk.statistics import ChannelStatistics
from stepladder.bulk.store import Store
from stepladder.errors import MissingDependencyError

__all__ = ["WebDatasetLayout"]


class WebDatasetLayout:
    """`latents-SHARD.tar`."""

    wants_pictures = False
    needs_labels = False

    def __init__(self) -> None:
        try:
            import webdataset
        except ImportError as error:
            raise MissingDependencyError(
                "Layout 'webdataset' needs the package webdataset, which is not installed. It comes with the extra "
                "'bulk'. Run pip install 'stepladder[bulk]'."
            ) from error
        self._open: Any = webdataset.TarWriter

    def write(self, shard: EncodedShard, folder: Path) -> dict[str, Any]:
        """Writes one file."""
        with (
            (folder / f"latents-{shard.name}.tar").open("wb") as file,
            self._open(file, mtime=0) as archive,  # the same bytes whenever it is written
        ):
            for place, row in enumerate(shard.good):
                assert row.size is not None
                about = {"id": row.id, "height": row.size[0], "width": row.size[1], "model": shard.fingerprint}
                sample = {
                    "__key__": f"{shard.name}-{place:05d}",
                    "latent.npy": array(row.values),
                    "json": json.dumps({**row.columns, **about}, default=str).encode(),
                }
                label = row.columns.get(shard.options.label or "label", row.columns.get("cls"))
                if label is not None:
                    sample["cls"] = str(label).encode()
                if row.flipped is not None:
                    sample["flip.npy"] = array(row.flipped)
                archive.write(sample)
        return {}

    def finish(self, store: Store, entries: Sequence[Entry], statistics: ChannelStatistics) -> None:
        """Nothing stands for all shards."""
