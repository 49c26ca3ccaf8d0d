"""Many files in, many files out: what can be refused is refused before work starts; one bad file stops no other."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from stepladder.cli._output import explain, one_line, progress, say, shown, smaller
from stepladder.errors import ConfigError, ImageError, OutputError, StepladderError
from stepladder.memory import is_out_of_memory

__all__ = ["Found", "Outcome", "Work", "check_distinct", "check_outputs", "find_images", "for_each", "make_folder"]

Item = TypeVar("Item")
Value = TypeVar("Value")
Result = TypeVar("Result")
Done = TypeVar("Done")


@dataclass(frozen=True, slots=True)
class Outcome(Generic[Done]):
    """What became of the items of a command."""

    done: list[Done] = field(default_factory=list)
    failed: list[tuple[str, BaseException]] = field(default_factory=list)
    """The name of each item that failed, and why."""

    @property
    def exit_code(self) -> int:
        """0 if all are done, else 1."""
        return 1 if self.failed else 0

    def failures(self, key: str) -> list[dict[str, str]]:
        """The failed items as plain data; `key` says what their names are."""
        return [{key: name, "error": one_line(error)} for name, error in self.failed]


@dataclass(frozen=True, slots=True)
class Found:
    """An image that was named."""

    path: Path
    name: Path
    """Without its suffix, below the folder in which it was found: what its results are called."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work(Generic[Item, Value, Result, Done]):
    """What is done with each item."""

    read: Callable[[Item], Value]
    """Gets one ready."""
    kind: Callable[[Value], object]
    """Those of one kind can be worked on together: images of one size."""
    compute: Callable[[list[Value]], list[Result]]
    """Works on several of one kind."""
    write: Callable[[Item, Value, Result], Done]
    """Finishes one."""


def find_images(arguments: Sequence[Path], *, without: Path | None = None) -> list[Found]:
    """The files that arguments mean: a file itself, whatever it is; a folder, the images in it and below. Each once.

    Args:
        arguments: Files and folders.
        without: A folder that is left out where it lies below one of them: that of the results.

    Raises:
        ImageError: If a folder holds no images.
    """
    from stepladder.images import image_files

    left_out = os.path.realpath(without) if without is not None else None
    found: dict[str, Found] = {}
    for argument in arguments:
        folder = os.path.isdir(argument)  # noqa: PTH112 (odd names)
        for path in image_files(argument, without=left_out) if folder else [argument]:
            name = path.relative_to(argument) if folder else Path(path.name)
            found.setdefault(os.path.realpath(path), Found(path, name.with_suffix("")))
    return list(found.values())


def check_distinct(results: Iterable[tuple[Path, str]]) -> None:
    """Refuses two inputs that would become one result.

    Args:
        results: Each input, and what it becomes, as text.

    Raises:
        ConfigError: If two become the same.
    """
    source_of: dict[str, Path] = {}
    for source, result in results:
        first = source_of.setdefault(result, source)
        if first != source:
            raise ConfigError(
                f"{shown(first)} and {shown(source)} would both become {result}. "
                "Rename one, or run them apart with another --out."
            )


def check_outputs(inputs: Iterable[Path], outputs: Sequence[Path], *, force: bool) -> None:
    """Refuses, before work starts, what would overwrite something.

    Args:
        inputs: Files that are never replaced.
        outputs: Files that will be written.
        force: Whether existing files may be replaced.

    Raises:
        OutputError: If an output is an input, or exists already.
    """
    kept = {os.path.realpath(path) for path in inputs}
    for output in outputs:
        if os.path.realpath(output) in kept:
            raise OutputError(f"{shown(output)} is an input and is not overwritten. Name another --out.")
    existing = [output for output in outputs if os.path.lexists(output)]
    if existing and not force:
        more = f" (and {len(existing) - 1} more)" if len(existing) > 1 else ""
        raise OutputError(f"{shown(existing[0])} exists already{more}. Pass --force to replace, or name another --out.")


def make_folder(folder: Path) -> None:
    """Makes a folder for results.

    Raises:
        OutputError: If it is a file, or cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = "it is a file" if isinstance(error, FileExistsError) else getattr(error, "strerror", None) or error
        raise OutputError(f"Cannot write to folder {shown(folder)}: {reason}. Name another --out.") from error


def for_each(
    items: Sequence[Item],
    work: Work[Item, Value, Result, Done],
    *,
    batch: int,
    name: Callable[[Item], str],
    label: str,
    debug: bool,
) -> Outcome[Done]:
    """Works on the items in batches; a line for each that fails, and the others are done.

    Args:
        items: What to work on. Neighbours that are alike are worked on together.
        work: Does it.
        batch: How many together at most.
        name: Names one, for messages.
        label: What a bar on stderr says.
        debug: Whether tracebacks are shown.
    """
    outcome: Outcome[Done] = Outcome()

    def attempt(group: Sequence[Item], action: Callable[[], Any]) -> Any:
        """What `action` gives; None where it failed, which is noted for all of the `group`."""
        names = [name(item) for item in group]
        try:
            return action()
        except (StepladderError, OSError, MemoryError, RuntimeError) as error:
            known = _known(error, ", ".join(names))
            explain(known.with_traceback(error.__traceback__), debug=debug)
            outcome.failed.extend((each, known) for each in names)
            return None

    def finish(group: list[tuple[Item, Value]]) -> None:
        values = [value for _, value in group]
        results = attempt([item for item, _ in group], partial(work.compute, values)) if group else None
        for (item, value), result in zip(group, results or [], strict=False):  # none if they failed
            done = attempt([item], partial(work.write, item, value, result))
            if done is not None:
                outcome.done.append(done)

    waiting: list[tuple[Item, Value]] = []
    for item in progress(items, label):
        value = attempt([item], partial(work.read, item))
        if value is None:
            continue
        if waiting and work.kind(waiting[0][1]) != work.kind(value):
            finish(waiting)
            waiting = []
        waiting.append((item, value))
        if len(waiting) == batch:
            finish(waiting)
            waiting = []
    finish(waiting)
    if outcome.failed:
        say(f"{len(outcome.done)} of {len(items)} done, {len(outcome.failed)} failed.")
    return outcome


def _known(error: Exception, names: str) -> Exception:
    """The error in words for users; raises it again if it is a bug."""
    if is_out_of_memory(error):
        return ImageError(f"Not enough memory for {names}. {smaller(error)}")
    if isinstance(error, StepladderError | OSError):
        return error
    raise error
