"""The manifest of a bulk job: what it is, and which shards are done.

    _bulk/job.json             options, fingerprint of the model, input: a resume must have the same
    _bulk/shards/NAME.json     one entry for each shard that is done, written after its files
    _bulk/unfinished/          what is being written

A shard counts as done when its entry is there and its files have the sizes that the entry names. A kill at any moment
leaves either that, or nothing that counts: the shard is then made again, under the same names, with the same bits.
Entries are files of their own, so that workers on many machines write them without a server, also to object stores.
"""

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from stepladder.bulk.store import JOB_FOLDER, Store
from stepladder.errors import ConfigError, OutputError
from stepladder.files import reason

__all__ = ["Entry", "Manifest"]

_READERS = 16
"""Threads that read entries: an object store answers each in its own time."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What became of a shard."""

    shard: str
    images: int
    """Written, without those that failed."""
    files: dict[str, int]
    """Sizes by their paths below the output."""
    errors: list[dict[str, str]] = field(default_factory=list)
    """Id and reason of each image that failed."""
    statistics: dict[str, Any] = field(default_factory=dict)
    """What is added up over shards."""
    index: dict[str, Any] = field(default_factory=dict)
    """What the layout needs of the shard when the job is done."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Where the time of the worker went: waiting for images, network, writing, all; and what the processor worked."""


class Manifest:
    """Reads and writes the entries of an output."""

    def __init__(self, store: Store) -> None:
        self.store = store

    @contextlib.contextmanager
    def opened(self, job: Mapping[str, Any]) -> Iterator[dict[str, Entry]]:
        """Begins a job, or goes on with it; keeps other runs on this machine out.

        Args:
            job: What the job is, as plain data.

        Returns:
            The shards that are done.

        Raises:
            OutputError: If another run is at work there, or nothing can be written.
            ConfigError: If the output belongs to another job.
        """
        with self._locked():
            known = self.store.read_json(f"{JOB_FOLDER}/job.json")
            if known is None:
                self._check_empty()
                self.store.write_json(f"{JOB_FOLDER}/job.json", job)
                known = dict(job)
            _check_same(known, job, self.store.url)
            if not self.store.remote:
                shutil.rmtree(Path(self.store.url, JOB_FOLDER, "unfinished"), ignore_errors=True)
            yield self._done()
            if not self.store.remote:
                shutil.rmtree(Path(self.store.url, JOB_FOLDER, "unfinished"), ignore_errors=True)

    def enter(self, entry: Entry) -> None:
        """Enters a shard whose files are published."""
        self.store.write_json(f"{JOB_FOLDER}/shards/{entry.shard}.json", asdict(entry))

    def _check_empty(self) -> None:
        other = next((name for name in self.store.sizes() if not name.startswith(JOB_FOLDER)), None)
        if other is not None:
            raise OutputError(
                f"{self.store.url} holds other files already, for example {other}. An empty or new folder is "
                "needed, or one of the same job. Name another output."
            )

    def _done(self) -> dict[str, Entry]:
        there = self.store.sizes()
        folder = f"{JOB_FOLDER}/shards/"
        names = [name for name in there if name.startswith(folder)]
        with ThreadPoolExecutor(_READERS) as threads:
            found = list(threads.map(self.store.read_json, names))
        done = {}
        for content in found:
            with contextlib.suppress(TypeError):  # an entry of another version is no entry
                entry = Entry(**(content or {}))
                if all(there.get(file) == size for file, size in entry.files.items()):
                    done[entry.shard] = entry
        return done

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        if self.store.remote:
            yield
            return
        folder = Path(self.store.url, JOB_FOLDER)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / ".lock", timeout=0)
            lock.acquire()
        except Timeout:
            raise OutputError(
                f"Another run is at work in {self.store.url}. One at a time is accepted. Wait for its end, or name "
                "another output."
            ) from None
        except OSError as error:
            raise OutputError(
                f"Cannot write {folder}: {reason(error)}. A folder that can be written is needed. Name another output."
            ) from error
        try:
            yield
        finally:
            lock.release()


def _check_same(known: Mapping[str, Any], job: Mapping[str, Any], url: str) -> None:
    """Refuses to mix two jobs in one output."""
    for key in sorted(known.keys() | job.keys()):
        before, now = known.get(key), job.get(key)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            _check_same(before, now, url)
        elif before != now:
            raise ConfigError(
                f"{url} was begun with {key} {_shown(before)}, and this run has {_shown(now)}. An output is of one "
                "model, one input and one set of options. Repeat those, or name another output."
            )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
