r"""Pictures in a terminal: as they are where it takes images, else in characters of two coloured halves.

    kitty     ESC _G a=T,f=100,c=COLUMNS,m=MORE; base64 ESC \      in parts of 4096 characters
    iterm     ESC ]1337;File=inline=1;width=COLUMNS: base64 BEL
    blocks    a character of a row is two pixels: its upper half in one colour, the rest in another

Reference: https://sw.kovidgoyal.net/kitty/graphics-protocol, https://iterm2.com/documentation-images.html
"""

import base64
import io
import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, TypeAlias

from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

from stepladder.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Way", "draw", "way_to_draw"]

Way: TypeAlias = Literal["kitty", "iterm", "blocks"]

_KITTY = {"ghostty"}
_ITERM = {"iTerm.app", "WezTerm", "mintty"}
_KITTY_PART = 4096
_PIXELS_PER_COLUMN = 16
"""Of a picture that is sent as it is; more shows on no screen."""
_LINES_LEFT = 3
"""Lines of the terminal that a picture leaves to its caption and to the prompt."""


def way_to_draw(console: Console, environment: Mapping[str, str] = os.environ) -> Way:
    """How this terminal shows pictures.

    Raises:
        ConfigError: If it cannot: no terminal, or none with colours.
    """
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if not console.is_terminal or console.color_system is None:
        what = "standard error is no terminal" if not console.is_terminal else f"this one has none (TERM={term})"
        raise ConfigError(
            f"--show draws in a terminal with colours, and {what}. Leave --show out; --compare writes a file."
        )
    if "TMUX" in environment or term.startswith(("screen", "tmux")):
        return "blocks"  # they hand on neither of the others
    if "KITTY_WINDOW_ID" in environment or term in ("xterm-kitty", "xterm-ghostty") or program in _KITTY:
        return "kitty"
    if program in _ITERM or environment.get("LC_TERMINAL") == "iTerm2":
        return "iterm"
    return "blocks"


def draw(picture: "Image", console: Console, way: Way) -> None:
    """Draws an RGB picture as large as the terminal allows, and never larger than it is."""
    columns = _columns(picture, console)
    if way == "blocks":
        lines = max(1, math.ceil(columns * picture.height / picture.width / 2))
        console.print(_blocks(picture.resize((columns, 2 * lines))), soft_wrap=True)
        return
    data = _png(picture, columns)
    escape = _kitty(data, columns) if way == "kitty" else _iterm(data, columns)
    console.file.write(f"{escape}\n")
    console.file.flush()


def _columns(picture: "Image", console: Console) -> int:
    """Columns of the terminal that a picture takes; a column is half as wide as a line is high."""
    lines = max(1, console.height - _LINES_LEFT)
    return max(1, min(console.width, picture.width, math.floor(2 * lines * picture.width / picture.height)))


def _blocks(picture: "Image") -> Text:
    """Pixels of an even number of rows, two in a character."""
    pixels = picture.load()
    assert pixels is not None, "a picture in memory has pixels"
    text = Text()
    for top in range(0, picture.height, 2):
        for x in range(picture.width):
            upper, lower = (Color.from_rgb(*pixels[x, y]) for y in (top, top + 1))  # type: ignore[misc]
            text.append("\u2580", Style(color=upper, bgcolor=lower))
        if top + 2 < picture.height:
            text.append("\n")
    return text


def _png(picture: "Image", columns: int) -> str:
    sent = picture.copy()
    sent.thumbnail((columns * _PIXELS_PER_COLUMN, picture.height))
    buffer = io.BytesIO()
    sent.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _kitty(data: str, columns: int) -> str:
    parts = [data[start : start + _KITTY_PART] for start in range(0, len(data), _KITTY_PART)]
    first = f"a=T,f=100,c={columns},"
    return "".join(
        f"\033_G{first if index == 0 else ''}m={int(index + 1 < len(parts))};{part}\033\\"
        for index, part in enumerate(parts)
    )


def _iterm(data: str, columns: int) -> str:
    return f"\033]1337;File=inline=1;width={columns};preserveAspectRatio=1:{data}\a"
