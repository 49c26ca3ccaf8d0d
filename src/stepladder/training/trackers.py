"""Records and pictures for TensorBoard or Weights & Biases, through accelerate, beside the files of the run."""

import importlib.util
import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from stepladder.configs import unstructure
from stepladder.errors import MissingDependencyError
from stepladder.training.config import RunConfig
from stepladder.training.records import StepRecord, write_text

__all__ = ["Tracker", "check_tracker", "flat", "log_picture", "log_record", "start_tracker"]


class Tracker(Protocol):
    """What accelerate makes of TensorBoard and Weights & Biases."""

    name: str

    def log(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Takes numbers."""
        ...

    def log_images(self, values: Mapping[str, Any], step: int | None = None, **options: Any) -> None:
        """Takes pictures."""
        ...


class Trackable(Protocol):
    """What starts trackers: accelerate's `Accelerator`."""

    def init_trackers(self, project_name: str, config: dict[str, Any], init_kwargs: dict[str, Any]) -> None:
        """Starts them under a name, with the configuration of the run."""
        ...


def check_tracker(config: RunConfig) -> None:
    """Checks that the package of the configured tracker is there.

    Raises:
        MissingDependencyError: If it is not.
    """
    if config.tracker is not None and importlib.util.find_spec(config.tracker) is None:
        raise MissingDependencyError(
            f"tracker '{config.tracker}' needs the package {config.tracker}, which is not installed. "
            "pip install 'stepladder[trackers]', or leave the tracker out."
        )


def start_tracker(accelerator: Trackable, config: RunConfig, run_dir: Path) -> None:
    """Starts the tracker of a run, so that a resumed run goes on in the same place."""
    options: dict[str, dict[str, Any]] = {}
    if config.tracker == "wandb":
        identity = {"id": _identity(run_dir), "name": run_dir.name, "dir": str(run_dir), "resume": "allow"}
        options = {"wandb": identity}
    accelerator.init_trackers("stepladder", config=flat(unstructure(config)), init_kwargs=options)


def log_record(trackers: Iterable[Tracker], record: StepRecord) -> None:
    """Sends the numbers of a record."""
    values = flat(asdict(record))
    step = values.pop("step")
    numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
    for tracker in trackers:
        tracker.log(numbers, step=step)


def log_picture(trackers: Sequence[Tracker], name: str, picture: Image.Image, *, step: int) -> None:
    """Sends a picture."""
    for tracker in trackers:
        if tracker.name == "tensorboard":
            tracker.log_images({name: np.asarray(picture)[None]}, step=step, dataformats="NHWC")
        else:
            tracker.log_images({name: [picture]}, step=step)


def flat(values: Mapping[str, Any], inside: str = "") -> dict[str, Any]:
    """Nested tables as one, with keys a.b; lists of numbers by place, others and None as text."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{inside}{key}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{name}/")
        elif isinstance(value, list | tuple) and all(isinstance(v, int | float) for v in value):
            found |= {f"{name}/{index}": v for index, v in enumerate(value)}
        else:
            found[name] = value if isinstance(value, bool | int | float | str) else json.dumps(value)
    return found


def _identity(run_dir: Path) -> str:
    """The name by which Weights & Biases knows this run, also after a resume."""
    place = run_dir / "tracker" / "wandb-id.txt"
    if not place.exists():
        write_text(place, secrets.token_hex(8) + "\n")
    return place.read_text(encoding="utf-8").strip()
