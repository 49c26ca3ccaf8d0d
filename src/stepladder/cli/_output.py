"""Where words go: results to stdout, talk and progress to stderr."""

import json
import os
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

__all__ = [
    "SMALLER",
    "explain",
    "is_out_of_memory",
    "one_line",
    "print_json",
    "print_table",
    "print_text",
    "progress",
    "progress_bar",
    "say",
    "shown",
    "talk",
]

Item = TypeVar("Item")

SMALLER = "Use smaller images or a smaller --batch where there is one, or pass --device cpu."
"""What to do when memory is not enough."""

_PIPED_WIDTH = 200
"""Columns of tables that no terminal shows, so that file names stay whole."""


def say(message: str) -> None:
    """One line of talk."""
    print(message, file=sys.stderr, flush=True)  # noqa: T201


def explain(error: BaseException, *, debug: bool) -> None:
    """One line for an error, under its traceback if `debug`."""
    if debug:
        traceback.print_exception(error)
    say(f"error: {one_line(error)}")


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks; never empty."""
    return " ".join(str(error).split()) or type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, a device or the CPU allocator of torch ran out of memory."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"MemoryError", "OutOfMemoryError"}) or "can't allocate memory" in str(error)


def shown(path: str | os.PathLike[str]) -> str:
    """A path as text that every terminal and every JSON reader takes; bytes that are no text become marks."""
    return os.fsencode(path).decode("utf-8", "replace")


def print_text(text: str) -> None:
    """The result of a command as it is."""
    print(text, flush=True)  # noqa: T201


def print_json(result: Mapping[str, Any]) -> None:
    """The result of a command as one JSON object."""
    print(json.dumps(result, indent=2, allow_nan=False), flush=True)  # noqa: T201


def print_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None, numbers: bool = True
) -> None:
    """The result of a command as a table.

    Args:
        headings: Of the columns.
        rows: Of cells.
        title: Above the table.
        numbers: Whether all columns but the first hold numbers, which stand at the right.
    """
    table = Table()
    for index, heading in enumerate(headings):
        number = numbers and index > 0
        table.add_column(heading, justify="right" if number else "left", overflow="ellipsis" if number else "fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    width = None if sys.stdout.isatty() else _PIPED_WIDTH
    console = Console(file=sys.stdout, width=width)
    if title:
        console.print(Text(title), soft_wrap=True)
    console.print(table)


def talk() -> Console:
    """The console of talk and progress, stderr."""
    return Console(stderr=True)


def progress_bar(label: str) -> Progress:
    """A bar on stderr that vanishes when it is done; nothing where stderr is no terminal."""
    console = talk()
    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def progress(items: Sequence[Item], label: str) -> Iterable[Item]:
    """Goes through `items`, with a bar if there are several."""
    if len(items) < 2:
        yield from items
        return
    with progress_bar(label) as bar:
        yield from bar.track(items)
