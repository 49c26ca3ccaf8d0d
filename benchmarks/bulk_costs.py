"""Measures what a bulk encode costs beside the network: reading, cutting, writing, the manifest, the driver.

    python benchmarks/bulk_costs.py NAME --data-name TEXT SHARD.tar [--model photo] [--size 256]

writes benchmarks/results/bulk/NAME.json, from which docs/scale.md does its arithmetic. Times are processor times of one
thread where one works, so that whatever else the machine does touches them little; those of the manifest are wall times
and name the number of shards.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, Python looks beside it only

from benchmarks.record import RESULTS, ROOT, commit, hardware
from stepladder.bulk.engines import carry_out
from stepladder.bulk.job import Outcome
from stepladder.bulk.layouts.base import EncodedRow, EncodedShard
from stepladder.bulk.layouts.parquet import ParquetLayout
from stepladder.bulk.manifest import Entry, Manifest
from stepladder.bulk.options import EncodeOptions
from stepladder.bulk.store import JOB_FOLDER, Store
from stepladder.data.pieces import Piece, plan_pieces
from stepladder.images import centre_crop_resize, load_image, to_tensor
from stepladder.measure.profiling import count_flops
from stepladder.memory import keep_freed_memory
from stepladder.tokenizer import Tokenizer

SHARDS = 10_000
IMAGES = 256


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(description="Measure what a bulk encode costs beside the network.")
    parser.add_argument("name", help="the record is benchmarks/results/bulk/NAME.json")
    parser.add_argument("--data-name", required=True, help="what the record calls the data, instead of its path")
    parser.add_argument("--model", default="photo")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("data", help="a tar shard of photographs")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    keep_freed_memory()  # as the workers do
    record = {
        "commit": commit(),
        "hardware": hardware("cpu"),
        "torch": torch.__version__,
        "data": options.data_name,
        "model": options.model,
        "size": options.size,
        **images(options.data, options.model, options.size),
        **manifest(),
    }
    path = RESULTS / "bulk" / f"{options.name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    print(f"{path.relative_to(ROOT)} written.")
    return 0


def images(data: str, model: str, size: int) -> dict[str, Any]:
    """Processor milliseconds for each image, and bytes."""
    rows = [row for piece in plan_pieces(data, images=IMAGES).pieces[:1] for row in piece.rows()]
    raw = [row.data for row in rows if isinstance(row.data, bytes)]
    tokenizer = Tokenizer.from_pretrained(model)
    read = timed(lambda: [list(piece.rows()) for piece in plan_pieces(data, images=IMAGES).pieces[:1]])
    opened = [load_image(each) for each in raw]
    cut = [to_tensor(centre_crop_resize(image, size)) for image in opened]
    batches = [torch.stack(cut[first : first + 16]) for first in range(0, len(cut) - 15, 16)][:4]
    latents = [latent for batch in batches for latent in tokenizer.encode(batch).latent]
    values = [latents[n % len(latents)] for n in range(len(raw))]
    shard = EncodedShard(
        name="0",
        rows=[
            EncodedRow(id=row.id, columns={}, size=(size, size), values=v) for row, v in zip(rows, values, strict=False)
        ],
        fingerprint="0" * 16,
        options=EncodeOptions(size=size),
    )
    with tempfile.TemporaryDirectory() as folder:
        write = timed(lambda: ParquetLayout().write(shard, Path(folder)))
        stored = sum(path.stat().st_size for path in Path(folder).iterdir())
    count = len(raw)
    return {
        "image_kb": sum(map(len, raw)) / count / 1e3,
        "latent_kb": stored / count / 1e3,
        "read_ms": 1e3 * read / count,
        "decode_ms": 1e3 * timed(lambda: [load_image(each) for each in raw]) / count,
        "cut_ms": 1e3 * timed(lambda: [to_tensor(centre_crop_resize(image, size)) for image in opened]) / count,
        "network_ms": 1e3 * timed(lambda: [tokenizer.encode(batch) for batch in batches]) / (16 * len(batches)),
        "network_gflop": count_flops(lambda: tokenizer.encode(batches[0])) / 16 / 1e9,
        "write_ms": 1e3 * write / count,
    }


def manifest() -> dict[str, Any]:
    """What a shard costs the manifest and the driver, and what a resume costs."""
    entry = Entry(shard="0", images=1024, files={"latents-0.parquet": 1}, statistics={"mean": [0.0] * 16})
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        started = time.perf_counter()
        for number in range(100):
            Manifest(store).enter(Entry(**{**asdict(entry), "shard": str(number)}))
        enter = (time.perf_counter() - started) / 100
        shards = Path(folder, JOB_FOLDER, "shards")
        text = (shards / "0.json").read_text("utf-8")
        for number in range(SHARDS):
            (shards / f"{number:06d}.json").write_text(text, "utf-8")
        started = time.perf_counter()
        with Manifest(store).opened({}):
            resume = time.perf_counter() - started
        entry_bytes = len(text)
    started = time.perf_counter()
    done = sum(1 for _ in carry_out(Idle(), [Empty(str(number)) for number in range(SHARDS)]))
    return {
        "enter_ms": 1e3 * enter,
        "entry_bytes": entry_bytes,
        "resume_shards": SHARDS,
        "resume_seconds": resume,
        "driver_ms_per_shard": 1e3 * (time.perf_counter() - started) / done,
    }


class Empty:
    """A shard of nothing."""

    images = 0

    def __init__(self, name: str) -> None:
        self.name = name

    def rows(self) -> Any:
        """None."""
        return iter(())


class Idle:
    """Workers that are done at once: what is left is the driver."""

    size = 800

    def __init__(self) -> None:
        self._busy: dict[int, Piece] = {}

    def submit(self, worker: int, piece: Piece) -> None:
        """Keeps it."""
        self._busy[worker] = piece

    def wait(self) -> tuple[int, Outcome | None]:
        """The first that was kept."""
        worker, piece = next(iter(self._busy.items()))
        del self._busy[worker]
        return worker, Entry(shard=piece.name, images=1, files={})

    def has(self, worker: int) -> bool:
        """None of them dies."""
        return True

    def close(self) -> None:
        """Nothing to end."""


def timed(work: Callable[[], object]) -> float:
    """Processor seconds of the faster of two calls."""
    found = []
    for _ in range(2):
        started = time.process_time()
        work()
        found.append(time.process_time() - started)
    return min(found)


if __name__ == "__main__":
    sys.exit(main())
