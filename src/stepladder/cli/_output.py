"""Output: results to stdout, messages and progress to stderr."""

import json
import os
import sys
import traceback
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from stepladder.errors import one_line

__all__ = [
    "counted",
    "explain",
    "harmless",
    "print_json",
    "print_table",
    "print_text",
    "progress_bar",
    "say",
    "shown",
    "smaller",
    "talk",
]

_NARROWEST = 12
"""Characters that a column of text keeps when a terminal is narrow; its cells then take several lines."""
_FRAME = 3
"""Characters between two columns."""
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that turn the direction of what follows."""


def say(message: str) -> None:
    """Prints one line to stderr."""
    print(harmless(message), file=sys.stderr, flush=True)  # noqa: T201


def harmless(text: str) -> str:
    """A text as one line that moves no cursor: a file of somebody else may hold codes that a terminal obeys."""
    return "".join(
        repr(character)[1:-1] if unicodedata.category(character) in ("Cc", "Cs") or character in _TURNING else character
        for character in text
    )


def counted(number: int, thing: str) -> str:
    """`1 step`, `2 steps`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def rate(each_second: float) -> str:
    """`1,234.5`, and `0.052`: one digit after the point, below 1 two that matter."""
    return f"{each_second:,.1f}" if each_second >= 1 else f"{each_second:#.2g}"


def explain(error: BaseException, *, debug: bool) -> None:
    """One line for an error, under its traceback if `debug`."""
    if debug:
        traceback.print_exception(error)
    say(f"error: {one_line(error)}")


def smaller(error: BaseException) -> str:
    """What to do when memory is not enough."""
    elsewhere = ", or pass --device cpu" if type(error).__name__ == "OutOfMemoryError" else ""  # of an accelerator
    return f"Use smaller images, or a smaller --batch or --tile where the command has one{elsewhere}."


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
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    title: str | None = None,
    numbers: bool = True,
    spare: Sequence[str] = (),
) -> None:
    """The result of a command as a table that fits the terminal; elsewhere it is as wide as it is.

    Args:
        headings: Of the columns.
        rows: Of cells.
        title: Above the table.
        numbers: Whether all columns but the first hold numbers, which stand at the right and are never cut.
        spare: Headings of columns that a narrow terminal does without, the first of them first.
    """
    cells = [[harmless(cell) for cell in row] for row in rows]
    columns = {
        heading: max(map(cell_len, (heading, *column))) for heading, *column in zip(headings, *cells, strict=True)
    }
    text = set(headings[:1] if numbers else headings)
    room = Console(file=sys.stdout).width if sys.stdout.isatty() else None
    kept = _fitting(columns, room, text=text, spare=spare)
    table = Table()
    for heading in kept:
        flows = heading in text
        table.add_column(heading, justify="left" if flows else "right", overflow="fold", no_wrap=not flows)
    places = [list(headings).index(heading) for heading in kept]
    for row in cells:
        table.add_row(*(Text(row[place]) for place in places))
    console = Console(file=sys.stdout, width=_table_width(columns, kept, room, text))
    if title:
        console.print(Text(harmless(title)), soft_wrap=True)
    console.print(table)
    left = [heading for heading in headings if heading not in kept]
    if left:
        say(f"Left out to fit the terminal: {', '.join(left)}. Widen it, or pass --json.")


def _fitting(columns: Mapping[str, int], room: int | None, *, text: set[str], spare: Sequence[str]) -> list[str]:
    """The headings that stay when a terminal has `room` characters; None for any number."""
    kept = list(columns)
    for heading in spare:
        if room is None or _least_width(columns, kept, text) <= room:
            break
        kept.remove(heading)
    return kept


def _least_width(columns: Mapping[str, int], kept: Sequence[str], text: set[str]) -> int:
    """Characters that a table needs when its text takes several lines."""
    widths = (min(columns[heading], _NARROWEST) if heading in text else columns[heading] for heading in kept)
    return sum(widths) + _FRAME * len(kept) + 1


def _table_width(columns: Mapping[str, int], kept: Sequence[str], room: int | None, text: set[str]) -> int:
    """The terminal's, or more where numbers would be cut; the table's own where there is no terminal."""
    if room is None:
        return sum(columns[heading] + _FRAME for heading in kept) + 1
    return max(room, _least_width(columns, kept, text))


def talk() -> Console:
    """The console of talk and progress, stderr."""
    return Console(stderr=True)


class _Speed(ProgressColumn):
    """How many are done in a second."""

    def render(self, task: Task) -> Text:
        """Nothing before the first is done."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.3g}/s", style="progress.data.speed")


def progress_bar(label: str, *, silent: bool = False) -> Progress:
    """A bar on stderr that vanishes when it is done; nothing if `silent`, or where stderr is no terminal."""
    console = talk()
    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=silent or not console.is_terminal)
