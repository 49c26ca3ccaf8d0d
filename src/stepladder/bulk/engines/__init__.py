"""Workers of a bulk job, and the loop that keeps them busy. A worker that dies is replaced, its shard made again."""

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from stepladder.bulk.job import Failure, Job, Outcome, begin
from stepladder.data.pieces import Piece
from stepladder.errors import StepladderError

__all__ = ["Crew", "Here", "WorkerError", "carry_out"]

_log = logging.getLogger(__name__)

TRIES = 3
"""How often a shard is tried that fails for a reason that may pass."""


class WorkerError(StepladderError):
    """Workers that die again and again."""


class Crew(Protocol):
    """Workers, numbered from 0 on; each makes one shard at a time."""

    size: int
    """How many there were at the start."""

    def submit(self, worker: int, piece: Piece) -> None:
        """Hands a shard to a worker that is idle."""
        ...

    def wait(self) -> tuple[int, Outcome | None]:
        """The next worker that is done, and its outcome; None where it died."""
        ...

    def has(self, worker: int) -> bool:
        """Whether there is a worker of this number, after a death a new one."""
        ...

    def close(self) -> None:
        """Ends all workers."""
        ...


def carry_out(crew: Crew, pieces: Sequence[Piece]) -> Iterator[Outcome]:
    """Makes all shards, and yields what became of each, in the order in which they end.

    Raises:
        WorkerError: If workers die one after the other.
    """
    waiting, idle = deque(pieces), list(range(crew.size))
    busy: dict[int, Piece] = {}
    tries: Counter[str] = Counter()
    deaths = 0
    while waiting or busy:
        while waiting and idle:
            worker = idle.pop()
            busy[worker] = waiting.popleft()
            crew.submit(worker, busy[worker])
        if not busy:
            raise WorkerError(
                f"No worker is left, with {len(waiting)} shards to make: those that died found no place again. Free "
                "processors or add a node, then run the same command again."
            )
        worker, outcome = crew.wait()
        piece = busy.pop(worker)
        if crew.has(worker):
            idle.append(worker)
        deaths = deaths + 1 if outcome is None else 0
        if outcome is None:
            outcome = Failure(shard=piece.name, why=f"Its worker died {TRIES} times.", again=True)
            if deaths > TRIES * crew.size:
                raise WorkerError(
                    f"Workers died {deaths} times in a row, the last one at shard {piece.name}. Workers that stay "
                    "alive are needed. Check memory, or pass fewer --workers or a smaller --batch."
                )
            _log.warning("A worker died at shard %s. Another one makes it again.", piece.name)
        if isinstance(outcome, Failure) and outcome.again:
            tries[piece.name] += 1
            if tries[piece.name] < TRIES:
                waiting.append(piece)
                continue
        yield outcome


class Here:
    """No workers: this process makes the shards itself."""

    size = 1

    def __init__(self, job: Job) -> None:
        self._work: Callable[[Piece], Outcome] = begin(job, 0)
        self._piece: Piece | None = None

    def submit(self, worker: int, piece: Piece) -> None:
        """Keeps the shard until somebody waits."""
        self._piece = piece

    def wait(self) -> tuple[int, Outcome | None]:
        """Makes it."""
        assert self._piece is not None
        return 0, self._work(self._piece)

    def has(self, worker: int) -> bool:
        """It is always here."""
        return True

    def close(self) -> None:
        """Nothing to end."""
