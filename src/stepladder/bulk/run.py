"""The loop over shards of a bulk job: what is left to do goes to the workers, and what became of it to the summary."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from stepladder.bulk.engines import Crew, Here, carry_out
from stepladder.bulk.job import Failure, Job
from stepladder.bulk.manifest import Entry
from stepladder.data.pieces import Piece
from stepladder.errors import OutputError

__all__ = ["Engine", "Progress", "Result", "Summary", "work_through"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Engine:
    """What does the work."""

    kind: Literal["pool", "ray"] = "pool"
    workers: int | None = None
    """How many; None for as many as there is room for, 0 for none but this process."""
    address: str | None = None
    """Of a Ray cluster."""

    def start(self, job: Job, room: int, shards: int) -> Crew:
        """Starts workers, no more than there are shards; `room` is how many fit on this machine."""
        if self.kind == "ray":
            from stepladder.bulk.engines.ray import RayCrew

            return RayCrew(job, self.workers, self.address, most=shards)
        if self.workers == 0:
            return Here(job)
        from stepladder.bulk.engines.pool import Pool

        return Pool(job, min(self.workers or room, shards))


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a job is."""

    shards: int
    """Done, also by earlier runs."""
    all_shards: int
    images: int
    """Done by this run."""
    failed: int
    """Images that failed, of all runs."""
    images_per_second: float
    """Of this run."""
    seconds_left: float | None
    """At the pace of this run; None before its first shard."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a job has come to."""

    output: str
    input: str
    model: str
    fingerprint: str
    images: int
    """In the output."""
    failed: int
    """Images that are in the errors table instead."""
    shards: int
    """Done."""
    shards_before: int
    """Of these, by earlier runs."""
    shards_failed: list[dict[str, str]]
    """Shard and reason of each that is not done."""
    bytes: int
    """Of the files of all shards."""
    engine: str
    workers: int
    images_now: int
    """Written by this run."""
    seconds: float
    """Of this run, from the start of its workers on."""
    images_per_second: float
    shares: dict[str, float]
    """Of the time of the workers in this run: waiting for images, network, writing."""
    mean: list[float] = field(default_factory=list)
    """Of each channel of the latents, where they were made."""
    std: list[float] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    """Of decoded images, where originals were named."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Result:
    """The shards of a job after a run."""

    entries: list[Entry]
    before: int
    failures: list[Failure]
    engine: str
    workers: int
    seconds: float

    def totals(self) -> dict[str, Any]:
        """The fields of the summary that do not depend on what was done."""
        now = self.entries[self.before :]
        images_now = sum(entry.images for entry in now)
        spent = {
            part: sum(entry.seconds[part] for entry in now) for part in ("read", "network", "write", "all")
        }  # by the workers together
        whole = spent.pop("all") or 1.0
        return {
            "images": sum(entry.images for entry in self.entries),
            "failed": sum(len(entry.errors) for entry in self.entries),
            "shards": len(self.entries),
            "shards_before": self.before,
            "shards_failed": [{"shard": failure.shard, "error": failure.why} for failure in self.failures],
            "bytes": sum(sum(entry.files.values()) for entry in self.entries),
            "engine": self.engine,
            "workers": self.workers,
            "images_now": images_now,
            "seconds": round(self.seconds, 3),
            "images_per_second": round(images_now / self.seconds, 3) if now else 0.0,
            "shares": {part: round(seconds / whole, 4) for part, seconds in spent.items()},
        }


def work_through(
    job: Job,
    pieces: Sequence[Piece],
    done: dict[str, Entry],
    engine: Engine,
    room: int,
    on_progress: Callable[[Progress], None],
) -> Result:
    """Has the shards made that are not done yet.

    Raises:
        OutputError: If the output cannot be written any more.
    """
    left = [piece for piece in pieces if piece.name not in done]
    entries = [done[piece.name] for piece in pieces if piece.name in done]
    before = len(entries)
    failures: list[Failure] = []
    if not left:
        kind = engine.kind
        return Result(entries=entries, before=before, failures=[], engine=kind, workers=0, seconds=0.0)
    started = time.perf_counter()
    crew = engine.start(job, room, len(left))
    try:
        for outcome in carry_out(crew, left):
            if isinstance(outcome, Entry):
                entries.append(outcome)
                on_progress(_progress(entries, before, len(pieces), time.perf_counter() - started))
            elif outcome.fatal:
                _give_up(outcome)
            else:
                _log.warning("Shard %s failed: %s", outcome.shard, outcome.why)
                failures.append(outcome)
    finally:
        crew.close()
    seconds = time.perf_counter() - started
    return Result(
        entries=entries, before=before, failures=failures, engine=engine.kind, workers=crew.size, seconds=seconds
    )


def _give_up(failure: Failure) -> None:
    if failure.trace is not None:
        raise RuntimeError(f"A worker failed at shard {failure.shard}:\n{failure.trace}")
    raise OutputError(failure.why)


def _progress(entries: Sequence[Entry], before: int, shards: int, seconds: float) -> Progress:
    now = entries[before:]
    images = sum(entry.images for entry in now)
    return Progress(
        shards=len(entries),
        all_shards=shards,
        images=images,
        failed=sum(len(entry.errors) for entry in entries),
        images_per_second=images / seconds,
        seconds_left=seconds / len(now) * (shards - len(entries)),
    )
