"""Records one run of `stepladder evaluate` as a file that the tables are made from.

    python benchmarks/record.py NAME --data-name TEXT -- DATA MODEL@N [MODEL@N ...] [--size 256] [--limit N] [--seed 0]

runs the command with `--json` in this environment, here and now, and writes `benchmarks/results/NAME.json`: the report
with the hardware, the commit, the seed and the command. DATA is a path of this machine, so the record names the data by
`--data-name` instead. A tree with uncommitted changes of the code is recorded as COMMIT-dirty.

The first model is what the table compares speeds with.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from stepladder.profiling import describe_environment

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description="Record a run of `stepladder evaluate` in benchmarks/results.",
        epilog="After '--' come the arguments of `stepladder evaluate`.",
    )
    parser.add_argument("name", help="the record is benchmarks/results/NAME.json")
    parser.add_argument("--data-name", required=True, help="what the record calls the data, instead of its path")
    parser.add_argument("--force", action="store_true", help="replace a record of that name")
    given = list(sys.argv[1:] if arguments is None else arguments)
    split = given.index("--") if "--" in given else len(given)
    options = parser.parse_args(given[:split])
    words = given[split + 1 :]
    path = RESULTS / f"{options.name}.json"
    if path.exists() and not options.force:
        parser.error(f"{path.relative_to(ROOT)} exists. Pass --force to replace it.")
    if len(words) < 2:
        parser.error("name the data and at least one model after '--', as for `stepladder evaluate`.")
    command = [sys.executable, "-c", "from stepladder.cli import main; main()", "evaluate", *words, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False, text=True)
    if done.returncode:
        return done.returncode
    record = wrap(json.loads(done.stdout), words, data_name=options.data_name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    print(f"{path.relative_to(ROOT)} written. Now: make tables")
    return 0


def wrap(report: Mapping[str, Any], words: Sequence[str], *, data_name: str) -> dict[str, Any]:
    """The record of a report: where it was measured, on which commit, and by which command."""
    seed = words[words.index("--seed") + 1] if "--seed" in words else "0"
    named = [f"'{data_name}'" if " " in data_name else data_name, *words[1:]]
    return {
        "hardware": hardware(str(report["device"])),
        "commit": commit(),
        "seed": int(seed),
        "command": " ".join(["stepladder", "evaluate", *named, "--json"]),
        "report": {**report, "data": data_name},
    }


def hardware(device: str) -> str:
    """The accelerator by its name, or the processor with its number of cores."""
    environment = describe_environment(torch.device(device))
    cores = "" if device.startswith("cuda") else f", {environment['cores']} cores"
    return f"{environment['hardware']}{cores}"


def commit() -> str:
    """The short commit of the tree, with `-dirty` where the code differs from it."""
    try:
        name = _git("rev-parse", "--short", "HEAD")
        changed = _git("status", "--porcelain", "--", "src", "models", "constraints.txt")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{name}-dirty" if changed else name


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, check=True, text=True)
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
