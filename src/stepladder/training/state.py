"""Checkpoints of a run, written so that a kill at any moment loses none.

A checkpoint is a folder. It is written under a temporary name beside its place, synchronised to the disk, and only then
renamed; older ones are removed after that. A folder with a final name is therefore always whole.

A run resumes bit for bit from its weights (and a discriminator's), their average, the optimiser and the step. The
configuration of the model is stored, too, because what the run started from may have decided it and is not needed
again. Data order, crops, noise and learning rate are functions of (seed, step) and are not stored; for streams of
shards, the position of each lane is.

Where weights are divided among processes, each writes its parts into `shards/`, and `state.pt` has the rest.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import DeviceMesh

from stepladder.errors import CheckpointError, OutputError, brief
from stepladder.files import reason
from stepladder.processes import Processes
from stepladder.training.batches import Places
from stepladder.training.sharding import merged, read_shards, split, write_shards

__all__ = ["RunState", "latest_state", "load_model_config", "load_state", "remove_leftovers", "save_state"]

_STATE_FILE = "state.pt"
_SHARDS = "shards"
_NAME = re.compile(r"step-(\d+)")


@dataclass(frozen=True, kw_only=True)
class RunState:
    """The state of a run."""

    step: int
    """Optimiser steps taken."""
    model: dict[str, Any]
    discriminator: dict[str, Any]
    """The discriminator of an adversarial distillation; else empty."""
    ema: dict[str, Any]
    optimiser: dict[str, Any]
    data: Places = field(default_factory=dict)
    """Where the streams of all processes are; empty where batches are a function of their number."""
    config: dict[str, Any] = field(default_factory=dict)
    """Configuration of the model, in plain values; empty where the objective says none."""


def save_state(state: RunState, folder: Path, *, keep: int) -> Path:
    """Writes `folder/step-N` in one step, then removes all but the newest `keep`. All processes call it.

    Raises:
        OutputError: If the disk refuses; earlier checkpoints stay as they are.
    """
    processes = Processes()
    place = folder / f"step-{state.step:07d}"
    temporary = folder / f".{place.name}.{processes.share(os.getpid())}"
    rest, shards = split({part.name: getattr(state, part.name) for part in fields(state)})

    def write() -> None:
        temporary.mkdir(parents=True, exist_ok=True)
        with (temporary / _STATE_FILE).open("wb") as file:
            torch.save(rest, file)
            file.flush()
            os.fsync(file.fileno())

    def publish() -> None:
        if place.exists():
            shutil.rmtree(place)
        temporary.rename(place)
        for old in _places(folder)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)

    why = processes.share(_attempt(write) if processes.main else None)
    if why is None and shards:
        why = next(filter(None, processes.exchange(_attempt(lambda: write_shards(shards, temporary / _SHARDS)))), None)
    if why is None:
        why = processes.share(_attempt(publish) if processes.main else None)
    if why is not None:
        shutil.rmtree(temporary, ignore_errors=True)
        raise OutputError(f"Cannot write checkpoint {place}: {why}. Free space there, then continue with --resume.")
    return place


def _attempt(action: Callable[[], None]) -> str | None:
    """Why the disk refused; None if it did not."""
    try:
        action()
    except OSError as error:
        return reason(error)
    except CheckpointException as error:
        first = next(iter(error.failures.values()))[0]
        return reason(first) if isinstance(first, OSError) else brief(first)
    except RuntimeError:  # of torch, for a file that cannot grow
        return "the file cannot grow, most likely because the disk is full"
    return None


def latest_state(folder: Path) -> Path | None:
    """The newest whole checkpoint in a folder."""
    places = _places(folder)
    return places[-1] if places else None


def remove_leftovers(folder: Path) -> None:
    """Removes checkpoints that a kill left half written; only for the run that holds the lock of its folder."""
    for leftover in folder.glob(".step-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def load_state(place: Path, mesh: DeviceMesh | None = None) -> RunState:
    """Reads a checkpoint.

    Args:
        place: Its folder.
        mesh: Processes over which what was divided shall be divided now; None for whole tensors.

    Raises:
        CheckpointError: If it cannot be read.
    """
    with _readable(place):
        data = torch.load(place / _STATE_FILE, map_location="cpu", weights_only=True)
        if (place / _SHARDS).exists():
            data = merged(data, read_shards(place / _SHARDS, mesh))
        return RunState(**data)


def load_model_config(place: Path) -> dict[str, Any]:
    """Reads `RunState.config` alone; empty in checkpoints of versions that did not store it.

    Raises:
        CheckpointError: If the checkpoint cannot be read.
    """
    with _readable(place):
        data = torch.load(place / _STATE_FILE, map_location="cpu", weights_only=True, mmap=True)
        config: dict[str, Any] = data.get("config", {})
        return config


@contextlib.contextmanager
def _readable(place: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # torch raises many kinds for a damaged file
        raise CheckpointError(
            f"Checkpoint {place} cannot be read ({brief(error)}). Remove that folder and resume from the one before it."
        ) from error


def _places(folder: Path) -> list[Path]:
    found = [(int(match[1]), path) for path in folder.glob("step-*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]
