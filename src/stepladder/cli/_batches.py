"""Many items in batches: reading and writing overlap with the work, and a bad item does not stop the others."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

from stepladder.cli._output import explain, progress_bar, say, smaller
from stepladder.errors import ImageError, StepladderError, one_line
from stepladder.memory import is_out_of_memory

__all__ = ["Outcome", "Work", "for_each"]

Item = TypeVar("Item")
Value = TypeVar("Value")
Result = TypeVar("Result")
Done = TypeVar("Done")

_AHEAD = 4
"""Items that are read before they are needed, and results that may wait to be written."""


@dataclass(frozen=True, slots=True)
class Outcome(Generic[Done]):
    """The results of a command."""

    done: list[Done] = field(default_factory=list)
    failed: list[tuple[str, BaseException]] = field(default_factory=list)
    """Name and reason of each failed item."""

    @property
    def exit_code(self) -> int:
        """0 if all are done, else 1."""
        return 1 if self.failed else 0

    def failures(self, key: str) -> list[dict[str, str]]:
        """The failed items as plain data; `key` is the key of their names."""
        return [{key: name, "error": one_line(error)} for name, error in self.failed]


@dataclass(frozen=True, kw_only=True, slots=True)
class Work(Generic[Item, Value, Result, Done]):
    """How items are processed."""

    read: Callable[[Item], Value]
    """Prepares an item; runs in another thread."""
    kind: Callable[[Value], object]
    """Items of one kind can be processed together, such as images of one size."""
    batch: Callable[[Value], int]
    """Most items like this one in a batch."""
    compute: Callable[[list[Item], list[Value]], list[Result]]
    """Processes several items of one kind."""
    write: Callable[[Item, Value, Result], Done]
    """Finishes an item; runs in another thread."""


def for_each(
    items: Sequence[Item],
    work: Work[Item, Value, Result, Done],
    *,
    name: Callable[[Item], str],
    label: str,
    debug: bool,
) -> Outcome[Done]:
    """Processes items in batches; failures are reported in one line each and do not stop the others.

    Args:
        items: The items. Consecutive items of one kind are batched.
        work: How to process them.
        name: Names one, for messages.
        label: Label of the progress bar on stderr.
        debug: Whether tracebacks are shown.
    """
    with progress_bar(label) as bar, ThreadPoolExecutor(2, thread_name_prefix="files") as pool:
        task = bar.add_task("", total=len(items), visible=len(items) > 1)
        run = _Run(work, name, debug, pool, lambda count: bar.advance(task, count))
        try:
            for group in run.groups(items):
                run.finish(group)
            run.collect(0)
        finally:
            pool.shutdown(cancel_futures=True)
    if run.outcome.failed:
        say(f"{len(run.outcome.done)} of {len(items)} done, {len(run.outcome.failed)} failed.")
    return run.outcome


class _Run(Generic[Item, Value, Result, Done]):
    """The work in progress."""

    def __init__(
        self,
        work: Work[Item, Value, Result, Done],
        name: Callable[[Item], str],
        debug: bool,
        pool: ThreadPoolExecutor,
        advance: Callable[[int], object],
    ) -> None:
        self.work, self.name, self.debug, self.pool, self.advance = work, name, debug, pool, advance
        self.outcome: Outcome[Done] = Outcome()
        self._writing: deque[tuple[Item, Future[Done]]] = deque()

    def groups(self, items: Sequence[Item]) -> Iterator[list[tuple[Item, Value]]]:
        """Neighbours of one kind, as they are read."""
        waiting: list[tuple[Item, Value]] = []
        for item, value in self._read(items):
            if waiting and self.work.kind(waiting[0][1]) != self.work.kind(value):
                yield waiting
                waiting = []
            waiting.append((item, value))
            if len(waiting) >= self.work.batch(value):
                yield waiting
                waiting = []
        if waiting:
            yield waiting

    def finish(self, group: list[tuple[Item, Value]]) -> None:
        """Computes a group, and starts writing its results."""
        members, values = [item for item, _ in group], [value for _, value in group]
        results = self._attempt(members, partial(self.work.compute, members, values))
        for (item, value), result in zip(group, results or [], strict=False):  # none if they failed
            self._writing.append((item, self.pool.submit(self.work.write, item, value, result)))
        self.collect(_AHEAD)

    def collect(self, waiting: int) -> None:
        """Waits until at most so many results are still being written."""
        while len(self._writing) > waiting:
            item, future = self._writing.popleft()
            done = self._attempt([item], future.result)
            if done is not None:
                self.outcome.done.append(done)
                self.advance(1)

    def _read(self, items: Sequence[Item]) -> Iterator[tuple[Item, Value]]:
        """What can be read, in order."""
        reading: deque[tuple[Item, Future[Value]]] = deque()
        left = iter(items)
        while True:
            for item in left:
                reading.append((item, self.pool.submit(self.work.read, item)))
                if len(reading) == _AHEAD:
                    break
            if not reading:
                return
            item, future = reading.popleft()
            value = self._attempt([item], future.result)
            if value is not None:
                yield item, value

    def _attempt(self, group: Sequence[Item], action: Callable[[], Any]) -> Any:
        """What `action` gives; None where it failed, which is noted for all of the `group`."""
        names = [self.name(item) for item in group]
        try:
            return action()
        except (StepladderError, OSError, MemoryError, RuntimeError) as error:
            known = _known(error, ", ".join(names))
            explain(known.with_traceback(error.__traceback__), debug=self.debug)
            self.outcome.failed.extend((each, known) for each in names)
            self.advance(len(group))
            return None


def _known(error: Exception, names: str) -> Exception:
    """The error in words for users; raises it again if it is a bug."""
    if is_out_of_memory(error):
        return ImageError(f"Not enough memory for {names}. {smaller(error)}")
    if isinstance(error, StepladderError | OSError):
        return error
    raise error
