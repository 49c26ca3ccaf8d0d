"""Many files in, many files out: what can be refused is refused before work starts; one bad file stops no other."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from stepladder.cli._output import SMALLER, explain, is_out_of_memory, one_line, progress, say, shown
from stepladder.errors import ConfigError, ImageError, OutputError, StepladderError

__all__ = ["Outcome", "check_distinct", "check_outputs", "find_images", "for_each", "make_folder"]

Item = TypeVar("Item")
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


def find_images(arguments: Sequence[Path]) -> list[Path]:
    """The files that arguments mean: a file itself, whatever it is; a folder, the images in it. Each once.

    Raises:
        ImageError: If a folder holds no images.
    """
    from stepladder.images import image_files

    found: dict[str, Path] = {}
    for argument in arguments:
        for path in image_files(argument) if os.path.isdir(argument) else [argument]:  # noqa: PTH112 (odd names)
            found.setdefault(os.path.realpath(path), path)
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
    items: Sequence[Item], work: Callable[[Item], Done], *, name: Callable[[Item], str], label: str, debug: bool
) -> Outcome[Done]:
    """Works on the items one at a time; a line for each that fails, and the others are done.

    Args:
        items: What to work on.
        work: Does one.
        name: Names one, for messages.
        label: What a bar on stderr says.
        debug: Whether tracebacks are shown.
    """
    outcome: Outcome[Done] = Outcome()
    for item in progress(items, label):
        try:
            outcome.done.append(work(item))
        except (StepladderError, OSError, MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                known: BaseException = ImageError(f"Not enough memory for {name(item)}. {SMALLER}")
            elif isinstance(error, StepladderError | OSError):
                known = error
            else:
                raise
            explain(known.with_traceback(error.__traceback__), debug=debug)
            outcome.failed.append((name(item), known))
    if outcome.failed:
        say(f"{len(outcome.done)} of {len(items)} done, {len(outcome.failed)} failed.")
    return outcome
