"""The folder of a run: one run at a time, and only the run that it belongs to.

    config.json        the resolved configuration, to repeat the run
    changes.jsonl      what a resume changed of it, by step
    environment.json   hardware, versions, commit, measured peak and operations of a step
    records.jsonl      numbers of the run
    report.html        curves and grids, for a browser
    grids/             reconstructions of validation images at intervals
    tracker/           what TensorBoard reads
    checkpoints/       the newest states, for --resume
    model/             the averaged weights, loadable by `Tokenizer.from_pretrained`

A run resumes with its original configuration: with another seed, batch size or rate nothing could repeat it. Apart from
the number of steps, only settings that do not affect what is learnt may change. Another number of processes may share
the batches, as long as a step takes as many images.
"""

import contextlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from stepladder.configs import unstructure
from stepladder.errors import ConfigError, OutputError
from stepladder.files import reason
from stepladder.training.config import RunConfig, dump
from stepladder.training.records import write_text
from stepladder.training.state import latest_state, remove_leftovers

__all__ = ["MAY_CHANGE", "Change", "RunFolder"]

_log = logging.getLogger(__name__)

MAY_CHANGE = (
    "steps",
    "log_every",
    "grid_every",
    "save_every",
    "keep_checkpoints",
    "tracker",
    "compile",
    "shard",
    "gradient_checkpointing",
    "data.workers",
    "data.validation",
    "data.validation_images",
    "data.validation_size",
)
"""Keys whose values a resume may change."""

_REGROUPED = ("batch_size", "accumulate")
"""Keys that may change with the number of processes, while a step takes as many images as before."""


@dataclass(frozen=True, slots=True)
class Change:
    """A key whose value is not that of the run so far."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key} from {json.dumps(self.old)} to {json.dumps(self.new)}"


class RunFolder:
    """A place for a new run, or that of one to go on with.

    Args:
        path: The folder; made when the run starts.
        config: Of the run.
        resume: Whether to go on from the newest checkpoint there.

    Raises:
        OutputError: If it holds a run already, and this is no resume.
        ConfigError: If the run there has another configuration.
    """

    def __init__(self, path: Path, config: RunConfig, *, resume: bool) -> None:
        self.path, self.config = path, config
        self.state = latest_state(self.checkpoints) if path.exists() else None
        self._starts_over = resume and self.state is None
        if not resume and (self.state is not None or self.records.exists()):
            raise OutputError(f"{path} holds a run already. Pass --resume to go on with it, or another --out.")
        self._changes = self._find_changes() if self.state is not None else []

    @property
    def checkpoints(self) -> Path:
        """Of states."""
        return self.path / "checkpoints"

    @property
    def records(self) -> Path:
        """One line for each record."""
        return self.path / "records.jsonl"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other runs out, and removes what a kill left of checkpoints.

        The lock is the operating system's: it ends with the process, however that ends.

        Raises:
            OutputError: If another run is at work there, or the folder cannot be made.
        """
        place = self.path / ".lock"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(place, timeout=0)
            lock.acquire()
        except Timeout:
            raise OutputError(
                f"Another run is at work in {self.path}. Wait for its end, or pass another --out."
            ) from None
        except OSError as error:
            raise OutputError(f"Cannot write {self.path}: {reason(error)}. Name another place.") from error
        if self._starts_over:
            _log.warning("No checkpoint in %s: the run starts at step 0.", self.path)
        try:
            remove_leftovers(self.checkpoints)
            yield
        finally:
            place.unlink(missing_ok=True)
            lock.release()

    def describe(self, step: int, environment: dict[str, Any]) -> None:
        """Writes `config.json`, what changed in it at this step, and `environment.json`.

        Raises:
            ConfigError: If a step would take another number of images than the steps of the run so far.
        """
        place = self.path / "environment.json"
        now = environment["processes"]
        before = (_read_json(place).get("processes") if step else None) or now
        if step:
            self._check_step(before, now)
        changes = [*self._changes, *([Change("processes", before, now)] if before != now else [])]
        if changes:
            lines = [json.dumps({"step": step, "key": c.key, "old": c.old, "new": c.new}) for c in changes]
            log = self.path / "changes.jsonl"
            earlier = log.read_text(encoding="utf-8") if log.exists() else ""
            write_text(log, earlier + "".join(f"{line}\n" for line in lines))
        write_text(self.path / "config.json", dump(self.config) + "\n")
        write_text(place, json.dumps(environment, indent=2) + "\n")

    def _check_step(self, before: int, now: int) -> None:
        """Checks that a step takes as many images as before, when the number of processes changes."""
        old, batch = _read_json(self.path / "config.json"), self.config.batch_size
        was = [old.get(key, getattr(self.config, key)) for key in _REGROUPED]
        wanted, found = was[0] * was[1] * before, batch * self.config.accumulate * now
        if wanted == found:
            return
        way = f"Start a number of processes that divides {wanted // was[0]}, or a new run with another --out."
        if wanted % (batch * now) == 0:
            way = f"Set accumulate to {wanted // (batch * now)}, or start a new run with another --out."
        elif wanted % now == 0:
            way = f"Set batch_size to {wanted // now} and accumulate to 1, or start a new run with another --out."
        raise ConfigError(
            f"A step of the run in {self.path} takes {wanted} images (batch_size {was[0]} x accumulate {was[1]} x "
            f"{before} processes), and this resume {found} ({batch} x {self.config.accumulate} x {now}). A run takes "
            f"as many in all steps. {way}"
        )

    def _find_changes(self) -> list[Change]:
        changes = list(_differences(_read_json(self.path / "config.json"), unstructure(self.config)))
        refused = [change for change in changes if change.key not in (*MAY_CHANGE, *_REGROUPED)]
        if refused:
            raise ConfigError(
                f"The run in {self.path} has another configuration, and --resume would change "
                f"{'; '.join(map(str, refused))}. A resume may change {', '.join(MAY_CHANGE)}. Set the old values "
                f"({self.path / 'config.json'} holds them all), or start a new run with another --out."
            )
        return changes


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file; an empty one where there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _differences(old: dict[str, Any], new: dict[str, Any], inside: str = "") -> Iterator[Change]:
    """Values that differ; a key that only one side knows comes from another version of the library."""
    for key in old.keys() & new.keys():
        before, now = old[key], json.loads(json.dumps(new[key]))
        if isinstance(before, dict) and isinstance(now, dict):
            yield from _differences(before, now, f"{inside}{key}.")
        elif before != now:
            yield Change(f"{inside}{key}", before, now)
