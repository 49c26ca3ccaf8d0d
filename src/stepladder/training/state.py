"""Checkpoints of a run, written so that a kill at any moment loses none.

A checkpoint is a folder. It is written under a temporary name beside its place, synchronised to the disk, and only then
renamed; older ones are removed after that. A folder with a final name is therefore always whole.

A run resumes bit for bit from its weights (and a discriminator's), their average, the optimiser and the step. Data
order, crops, noise and learning rate are functions of (seed, step) and are not stored; for streams of shards, the
position of each lane is.
"""

import os
import re
import shutil
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from stepladder.errors import CheckpointError, OutputError
from stepladder.files import reason
from stepladder.training.batches import Places

__all__ = ["RunState", "latest_state", "load_state", "save_state"]

_STATE_FILE = "state.pt"
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


def save_state(state: RunState, folder: Path, *, keep: int) -> Path:
    """Writes `folder/step-N` in one step, then removes all but the newest `keep`.

    Raises:
        OutputError: If the disk refuses; earlier checkpoints stay as they are.
    """
    place = folder / f"step-{state.step:07d}"
    temporary = folder / f".{place.name}.{os.getpid()}"
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        with (temporary / _STATE_FILE).open("wb") as file:
            torch.save({part.name: getattr(state, part.name) for part in fields(state)}, file)
            file.flush()
            os.fsync(file.fileno())
        if place.exists():
            shutil.rmtree(place)
        temporary.rename(place)
    except (OSError, RuntimeError) as error:  # torch raises the second for a file that cannot grow
        shutil.rmtree(temporary, ignore_errors=True)
        why = (
            reason(error)
            if isinstance(error, OSError)
            else "the file cannot grow, most likely because the disk is full"
        )
        raise OutputError(
            f"Cannot write checkpoint {place}: {why}. Free space there, then continue with --resume."
        ) from error
    for old in _places(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return place


def latest_state(folder: Path) -> Path | None:
    """The newest whole checkpoint in a folder; leftovers of a kill are removed."""
    for leftover in folder.glob(".step-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    places = _places(folder)
    return places[-1] if places else None


def load_state(place: Path) -> RunState:
    """Reads a checkpoint.

    Raises:
        CheckpointError: If it cannot be read.
    """
    try:
        data = torch.load(place / _STATE_FILE, map_location="cpu", weights_only=True)
        return RunState(**data)
    except Exception as error:  # torch raises many kinds for a damaged file
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"Checkpoint {place} cannot be read ({reason}). Remove that folder and resume from the one before it."
        ) from error


def _places(folder: Path) -> list[Path]:
    found = [(int(match[1]), path) for path in folder.glob("step-*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]
