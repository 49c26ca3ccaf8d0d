"""Records one measurement as a file that the tables and plots are made from.

    python benchmarks/record.py NAME --data-name TEXT -- DATA MODEL@N [MODEL@N ...] [--size 256] [--limit N] [--seed 0]
    python benchmarks/record.py NAME --command benchmark -- MODEL@N [MODEL@N ...] [--size 256] [--seed 0]
    python benchmarks/record.py NAME --command ladder-cost -- [--size 256]
    python benchmarks/record.py NAME --command samplers --data-name TEXT -- DATA MODEL [--size 256] [--crops N]
    python benchmarks/record.py NAME --command paths --data-name TEXT -- DATA [--export DIR] [--size 256]
    python benchmarks/record.py NAME --command precision --data-name TEXT -- DATA [MODEL@N ...]
    python benchmarks/record.py NAME --command decisions --data-name TEXT -- DATA MODEL@N [MODEL@N ...] [--seeds N]
    python benchmarks/record.py NAME --command scales --data-name TEXT -- DATA MODEL@N [MODEL@N ...] [--size 256]
    python benchmarks/record.py NAME --command peer --data-name TEXT -- DATA DECODER.onnx ENCODER MODEL@N [MODEL@N ...]

runs `stepladder evaluate`, `stepladder benchmark` or a script of this folder with these arguments in this environment,
here and now, and writes `benchmarks/results/NAME.json`: the report with the hardware, the commit, the seed and the
command. DATA is a path of this machine, so the record names the data by `--data-name` instead, and of other absolute
paths it keeps the last part. A tree with uncommitted changes of the code is recorded as COMMIT-dirty.

The first model is what the table compares speeds with.
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from stepladder.measure.profiling import describe_environment

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SCRIPTS = {
    "ladder-cost": "benchmarks/ladder_cost.py",
    "decisions": "benchmarks/decisions.py",
    "paths": "benchmarks/paths.py",
    "peer": "benchmarks/peer.py",
    "precision": "benchmarks/precision.py",
    "samplers": "benchmarks/samplers.py",
    "scales": "benchmarks/scales.py",
}
"""Measurements that are no command of the package."""
WITH_DATA = ("evaluate", "decisions", "paths", "peer", "precision", "samplers", "scales")
"""Those whose first argument is data."""
COMMANDS = {
    "evaluate": "name the data and at least one model after '--', as for `stepladder evaluate`",
    "benchmark": "name at least one model after '--', as for `stepladder benchmark`",
    "ladder-cost": f"write the options of {SCRIPTS['ladder-cost']} after '--', or none",
    "decisions": f"name the data and at least one model after '--', as for {SCRIPTS['decisions']}",
    "peer": f"name the data, a decoder, an encoder and a model after '--', as for {SCRIPTS['peer']}",
    "scales": f"name the data and at least one model after '--', as for {SCRIPTS['scales']}",
    "samplers": f"name the data and a model after '--', as for {SCRIPTS['samplers']}",
    "paths": f"name the data after '--', as for {SCRIPTS['paths']}",
    "precision": f"name the data after '--', as for {SCRIPTS['precision']}",
}
"""What can be recorded, and what it needs."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description="Record a measurement in benchmarks/results.",
        epilog="After '--' come the arguments of the command that measures.",
    )
    parser.add_argument("name", help="the record is benchmarks/results/NAME.json")
    parser.add_argument("--command", choices=COMMANDS, default="evaluate", help="what measures (default: evaluate)")
    parser.add_argument("--data-name", help="what the record calls the data, instead of its path")
    parser.add_argument("--force", action="store_true", help="replace a record of that name")
    given = list(sys.argv[1:] if arguments is None else arguments)
    split = given.index("--") if "--" in given else len(given)
    options = parser.parse_args(given[:split])
    words = given[split + 1 :]
    path = RESULTS / f"{options.name}.json"
    if path.exists() and not options.force:
        parser.error(f"{path.relative_to(ROOT)} exists. Pass --force to replace it.")
    if len(words) < {"benchmark": 1, "ladder-cost": 0, "paths": 1, "precision": 1}.get(options.command, 2):
        parser.error(f"{COMMANDS[options.command]}.")
    if (options.data_name is not None) != (options.command in WITH_DATA):
        parser.error(f"--data-name belongs to --command {', '.join(WITH_DATA)}, which need it. Pass both or neither.")
    done = subprocess.run(program(options.command, words), stdout=subprocess.PIPE, check=False, text=True)
    if done.returncode:
        return done.returncode
    record = wrap(json.loads(done.stdout), options.command, words, data_name=options.data_name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    print(f"{path.relative_to(ROOT)} written. Now: make tables")
    return 0


def program(command: str, words: Sequence[str]) -> list[str]:
    """What is run: a command of the package that this interpreter finds, or a script beside this one."""
    if command in SCRIPTS:
        return [sys.executable, str(ROOT / SCRIPTS[command]), *words]
    return [sys.executable, "-c", "from stepladder.cli import main; main()", command, *words, "--json"]


def wrap(report: Mapping[str, Any], command: str, words: Sequence[str], *, data_name: str | None) -> dict[str, Any]:
    """The record of a report: where it was measured, on which commit, and by which command."""
    shortened = [Path(word).name if Path(word).is_absolute() else word for word in words]
    named = shortened if data_name is None else [data_name, *shortened[1:]]
    shown = ["python", SCRIPTS[command], *named] if command in SCRIPTS else ["stepladder", command, *named, "--json"]
    notes = {key: note.replace(str(Path.home()), "~") for key, note in report.get("notes", {}).items()}
    changes = ({} if data_name is None else {"data": data_name}) | ({"notes": notes} if notes else {})
    return {
        "hardware": hardware(str(report["device"])),
        "commit": commit(),
        "seed": int(report["seed"]),
        "command": shlex.join(shown),
        "report": {**report, **changes},
    }


def hardware(device: str) -> str:
    """The accelerator by its name, or the processor with its number of cores.

    Args:
        device: As a report says it: `cpu`, or `cuda (the name of the accelerator)`.
    """
    environment = describe_environment(torch.device(device.split()[0]))
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
