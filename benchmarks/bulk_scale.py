"""Writes the tables of docs/scale.md: what was measured of bulk coding, and the arithmetic of a hundred nodes.

    python benchmarks/bulk_scale.py            writes them
    python benchmarks/bulk_scale.py --check    changes nothing; exit 1 and one line where the page is out of date

Measured values come from benchmarks/results/bulk; what is assumed of data sets and nodes stands here, and in the page.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, Python looks beside it only

from benchmarks.record import RESULTS, ROOT

PAGE = ROOT / "docs" / "scale.md"
_BLOCK = re.compile(r"(<!-- bulk: (\w+) -->\n).*?(<!-- end bulk -->)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """What is assumed of a data set."""

    name: str
    images: float
    kilobytes: float
    """Of an image."""
    shard: int
    """Images in a shard."""


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """What is assumed of the machines."""

    name: str
    count: int
    cores: int
    """Of one node, that decode images and, without accelerators, run the network."""
    accelerators: int
    """Of one node; 0 runs the network on the cores. They are taken as faster than the cores feed them."""


DATA = (
    DataSet(name="ImageNet-22k", images=14.2e6, kilobytes=92, shard=1024),
    DataSet(name="LAION-5B at 384", images=5.85e9, kilobytes=41, shard=10_000),
)
NODES = (
    Nodes(name="100 nodes of 32 cores", count=100, cores=32, accelerators=0),
    Nodes(name="100 nodes of 8 GPUs and 128 cores", count=100, cores=128, accelerators=8),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(description="Write the tables of docs/scale.md from benchmarks/results/bulk.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the page is out of date")
    check = parser.parse_args(arguments).check
    tables = {"kills": kills(), "throughput": throughput(), "costs": costs(), "nodes": nodes()}
    text = PAGE.read_text("utf-8")
    written = _BLOCK.sub(lambda match: f"{match[1]}{tables[match[2]]}{match[3]}", text)
    if written == text:
        return 0
    if check:
        print("error: docs/scale.md is out of date. Run: make tables", file=sys.stderr)
        return 1
    PAGE.write_text(written, "utf-8")
    print("docs/scale.md: written")
    return 0


def kills() -> str:
    """What was left after the kills."""
    rows = []
    for name in ("kills-tiny", "kills-photos"):
        record = read(name)
        for engine, found in record["engines"].items():
            victims = [kill["victim"] for kill in found["kills"]]
            rows.append(
                [
                    record["command"][3],
                    engine,
                    f"{victims.count('driver')} drivers, {victims.count('worker')} workers",
                    str(found["outputs"]),
                    f"{record['images']:,} in each" if found["rows_once"] else "**lost or twice**",
                    "yes" if found["same_bits"] else "**no**",
                ]
            )
    return markdown(("data", "engine", "killed", "outputs", "images, each once", "same bits"), rows)


def throughput() -> str:
    """Rates of the bare network and of workers, turn by turn."""
    rows = []
    for name in ("throughput-photos", "throughput-tiny"):
        record = read(name)
        for number, turn in enumerate(record["turns"], start=1):
            rates = [f"{turn[key]['images_per_second']:.1f}" for key in ("bare_1", "workers_1", "bare_2", "workers_2")]
            cpu = [f"{1e3 * turn[key]['cpu_seconds_per_image']:.1f}" for key in ("bare_1", "workers_1", "workers_2")]
            rows.append([record["command"][3], str(number), f"{turn['load']:.0f}", *rates, " / ".join(cpu)])
    headings = ("data", "turn", "load", "bare, 1", "1 worker", "bare, 2", "2 workers", "processor ms: bare / 1 / 2")
    return markdown(headings, rows)


def costs() -> str:
    """Processor time of an image."""
    found = read("costs-photos")
    words = {
        "read_ms": "reading from a local tar shard",
        "decode_ms": "decoding the JPEG",
        "cut_ms": f"cutting and resizing to {found['size']}",
        "network_ms": f"network of `{found['model']}`, {found['network_gflop']:.1f} GFLOP",
        "write_ms": f"writing Parquet, {found['latent_kb']:.1f} kB of float32",
    }
    return markdown(("one image", "ms of one core"), [[text, f"{found[key]:.2f}"] for key, text in words.items()])


def nodes() -> str:
    """The arithmetic."""
    found = read("costs-photos")
    host = found["read_ms"] + found["decode_ms"] + found["cut_ms"] + found["write_ms"]
    rows = []
    for machines in NODES:
        each = host + (0 if machines.accelerators else found["network_ms"])
        rate = machines.count * machines.cores / each * 1e3
        for data in DATA:
            shards = data.images / data.shard
            rows.append(
                [
                    machines.name,
                    data.name,
                    f"{rate / 1e3:,.0f} k",
                    duration(data.images / rate),
                    f"{rate * data.kilobytes / 1e6:,.0f} GB/s",
                    f"{rate * found['latent_kb'] / 1e6:,.1f} GB/s",
                    f"{data.images * found['latent_kb'] / 1e9:,.1f} TB",
                    f"{shards / 1e3:,.0f} k",
                    f"{rate / data.shard:,.0f}",
                    duration(shards * found["resume_seconds"] / found["resume_shards"]),
                ]
            )
    headings = (
        "machines",
        "data",
        "images/s",
        "time",
        "reading",
        "writing",
        "latents",
        "shards",
        "entries/s",
        "resume",
    )
    return markdown(headings, rows)


def duration(seconds: float) -> str:
    """In the unit that suits it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column holds text."""
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def read(name: str) -> dict[str, Any]:
    """A record."""
    content: dict[str, Any] = json.loads((RESULTS / "bulk" / f"{name}.json").read_text("utf-8"))
    return content


if __name__ == "__main__":
    sys.exit(main())
