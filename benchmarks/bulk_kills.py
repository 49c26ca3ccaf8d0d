"""Kills a bulk encode at random moments until it has survived them, and compares what is left with an undisturbed run.

    python benchmarks/bulk_kills.py NAME --data-name TEXT -- INPUT --model MODEL [options of `stepladder bulk encode`]

One run is left alone. Then, for each engine, runs into fresh outputs are killed with SIGKILL, the driver or one of its
workers by the toss of a coin, at moments drawn from the time that the undisturbed run took. A driver that was killed is
started again on the same output, with another number of workers. Each output must have exactly one row for each image,
and the latents of the undisturbed run bit for bit. The record is benchmarks/results/bulk/NAME.json.
"""

import argparse
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, Python looks beside it only

from benchmarks.record import RESULTS, ROOT, commit, hardware

PROGRAM = [sys.executable, "-c", "from stepladder.cli import main\nif __name__ == '__main__': main()"]
ENGINES = ("pool", "ray")
EARLIEST = 2.0
"""Seconds from the start of a driver to the first kill."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(description="Kill a bulk encode again and again, and compare what is left.")
    parser.add_argument("name", help="the record is benchmarks/results/bulk/NAME.json")
    parser.add_argument("--data-name", required=True, help="what the record calls the data, instead of its path")
    parser.add_argument("--kills", type=int, default=10, help="for each engine")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and victims")
    given = list(sys.argv[1:] if arguments is None else arguments)
    split = given.index("--")
    options, words = parser.parse_args(given[:split]), given[split + 1 :]
    dice = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        started = time.monotonic()
        start(words, place / "whole", "pool", 2).wait()
        seconds = time.monotonic() - started
        whole = rows(place / "whole")
        found = {
            engine: torment(words, place / engine, engine, options.kills, seconds, dice, whole) for engine in ENGINES
        }
    record = {
        "commit": commit(),
        "hardware": hardware("cpu"),
        "torch": torch.__version__,
        "command": ["stepladder", "bulk", "encode", options.data_name, "OUTPUT", *words[1:]],
        "seed": options.seed,
        "images": len(whole),
        "undisturbed_seconds": round(seconds, 1),
        "engines": found,
    }
    path = RESULTS / "bulk" / f"{options.name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    print(f"{path.relative_to(ROOT)} written.")
    return 0 if all(result["same_bits"] and result["rows_once"] for result in found.values()) else 1


def torment(
    words: Sequence[str],
    place: Path,
    engine: str,
    kills: int,
    seconds: float,
    dice: random.Random,
    whole: dict[str, str],
) -> dict[str, Any]:
    """Kills runs of one engine, output after output, until there were enough kills and the last output is whole."""
    log: list[dict[str, Any]] = []
    outputs, once, same, workers = 0, True, True, 2
    while len(log) < kills:
        output = place / str(outputs)
        outputs += 1
        driver, began = start(words, output, engine, workers), time.monotonic()
        due = EARLIEST + dice.random() * seconds
        while driver.poll() is None:
            time.sleep(0.05)
            if len(log) < kills and time.monotonic() - began >= due:
                victim = kill(driver, dice.choice(("driver", "worker")))
                done = len(list((output / "_bulk" / "shards").glob("*.json")))
                log.append({"output": outputs, "victim": victim, "seconds": round(due, 2), "shards_done": done})
                print(f"{engine}: {log[-1]}", flush=True)
                if victim == "driver":
                    driver.wait()
                    workers = 3 - workers
                    driver = start(words, output, engine, workers)
                began, due = time.monotonic(), EARLIEST + dice.random() * seconds
        latents = rows(output)
        once = once and sorted(latents) == sorted(whole)
        same = same and latents == whole
        print(f"{engine}: output {outputs}: {len(latents)} rows, same bits: {latents == whole}", flush=True)
    return {"kills": log, "outputs": outputs, "rows_once": once, "same_bits": same}


def start(words: Sequence[str], output: Path, engine: str, workers: int) -> "subprocess.Popen[bytes]":
    """A driver."""
    command = [*PROGRAM, "bulk", "encode", words[0], str(output), *words[1:], "--engine", engine]
    return subprocess.Popen(
        [*command, "--workers", str(workers)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT
    )


def kill(driver: "subprocess.Popen[bytes]", victim: str) -> str:
    """Kills the driver or, if it has any yet, one of its workers; which it was."""
    if victim == "worker":
        workers = [child for child in psutil.Process(driver.pid).children(recursive=True) if is_worker(child)]
        if workers:
            workers[-1].kill()
            return "worker"
    driver.kill()
    return "driver"


def is_worker(process: psutil.Process) -> bool:
    """Whether it makes shards: a spawned process of the pool, or an actor."""
    try:
        words = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return "spawn_main" in words or words.startswith("ray::_Actor")


def rows(output: Path) -> dict[str, str]:
    """A hash of the latent of each image by its id; an id that is there twice is an error."""
    found: dict[str, str] = {}
    for path in sorted(output.glob("latents-*.parquet")):
        for row in pq.read_table(path, columns=["id", "latent"]).to_pylist():
            if row["id"] in found:
                raise AssertionError(f"{row['id']} is there twice")
            found[row["id"]] = hashlib.sha256(row["latent"] or b"").hexdigest()
    return found


if __name__ == "__main__":
    sys.exit(main())
