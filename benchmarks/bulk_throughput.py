"""Measures what a bulk encode makes of the bare network, and two workers of one.

    python benchmarks/bulk_throughput.py NAME --data-name TEXT [--turns 3] -- INPUT --model MODEL --size N [options]

By turns, so that whatever else the machine does touches all alike: one worker, two workers, and the bare network in
one and in two processes, on batches that are in memory already. A rate is that of the workers once they have started:
images over the time of their shards. As wall times of a busy machine say little, the record also has the processor time
of each image, in the workers and in the bare network. It is benchmarks/results/bulk/NAME.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, Python looks beside it only

from benchmarks.record import RESULTS, ROOT, commit, hardware

PROGRAM = [sys.executable, "-c", "from stepladder.cli import main\nif __name__ == '__main__': main()"]
BARE = """
import json, sys, time
import torch
from stepladder.memory import keep_freed_memory
from stepladder.tokenizer import Tokenizer
keep_freed_memory()  # as the workers do
torch.set_num_threads(1)
tokenizer = Tokenizer.from_pretrained(sys.argv[1])
images = torch.rand(16, 3, int(sys.argv[2]), int(sys.argv[2])) * 2 - 1
tokenizer.encode(images)
started, cpu, count = time.perf_counter(), time.process_time(), 0
while time.perf_counter() - started < 15:
    tokenizer.encode(images)
    count += len(images)
wall, cpu = time.perf_counter() - started, time.process_time() - cpu
print(json.dumps({"images_per_second": count / wall, "cpu_seconds_per_image": cpu / count}))
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(description="Measure the throughput of a bulk encode, by turns.")
    parser.add_argument("name", help="the record is benchmarks/results/bulk/NAME.json")
    parser.add_argument("--data-name", required=True, help="what the record calls the data, instead of its path")
    parser.add_argument("--turns", type=int, default=3)
    given = list(sys.argv[1:] if arguments is None else arguments)
    split = given.index("--")
    options, words = parser.parse_args(given[:split]), given[split + 1 :]
    model, size = words[words.index("--model") + 1], words[words.index("--size") + 1]
    turns: list[dict[str, Any]] = []
    for turn in range(options.turns):
        found = {f"workers_{n}": encode(words, n) for n in (1, 2)}
        found |= {f"bare_{n}": bare(model, size, n) for n in (1, 2)}
        turns.append({**found, "load": os.getloadavg()[0]})
        print(f"turn {turn + 1}: {turns[-1]}", flush=True)
    record = {
        "commit": commit(),
        "hardware": hardware("cpu"),
        "torch": torch.__version__,
        "command": ["stepladder", "bulk", "encode", options.data_name, "OUTPUT", *words[1:]],
        "turns": turns,
        "two_workers_over_one": ratio(turns, "workers_2", "workers_1", "images_per_second"),
        "bare_two_over_one": ratio(turns, "bare_2", "bare_1", "images_per_second"),
        "share_of_bare_rate": ratio(turns, "workers_2", "bare_2", "images_per_second"),
        "share_of_bare_processor_time": ratio(turns, "bare_1", "workers_1", "cpu_seconds_per_image"),
    }
    path = RESULTS / "bulk" / f"{options.name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    print(f"{path.relative_to(ROOT)} written.")
    return 0


def encode(words: Sequence[str], workers: int) -> dict[str, float]:
    """One run with so many workers."""
    with tempfile.TemporaryDirectory() as folder:
        command = [*PROGRAM, "bulk", "encode", words[0], f"{folder}/out", *words[1:], "--workers", str(workers)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
        entries = [json.loads(path.read_text("utf-8")) for path in Path(folder, "out/_bulk/shards").glob("*.json")]
    images = sum(entry["images"] for entry in entries)
    seconds = {part: sum(entry["seconds"][part] for entry in entries) for part in ("all", "cpu", "network")}
    return {
        "images_per_second": workers * images / seconds["all"],
        "cpu_seconds_per_image": seconds["cpu"] / images,
        "share_in_network": seconds["network"] / seconds["all"],
    }


def bare(model: str, size: str, processes: int) -> dict[str, float]:
    """The bare network in so many processes at once."""
    started = [
        subprocess.Popen([sys.executable, "-c", BARE, model, size], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for _ in range(processes)
    ]
    found = [json.loads(process.communicate()[0]) for process in started]
    return {
        "images_per_second": sum(each["images_per_second"] for each in found),
        "cpu_seconds_per_image": sum(each["cpu_seconds_per_image"] for each in found) / processes,
    }


def ratio(turns: Sequence[dict[str, Any]], first: str, second: str, key: str) -> float:
    """The median over turns of one over the other."""
    return median(turn[first][key] / turn[second][key] for turn in turns)


if __name__ == "__main__":
    sys.exit(main())
