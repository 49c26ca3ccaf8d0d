"""Comparisons in a terminal."""

import base64
import errno
import io
import os
import re

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from stepladder.cli._terminal import draw, way_to_draw
from stepladder.errors import ConfigError

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8))


def console(*, colours="truecolor", width=80, height=24) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=True, color_system=colours, width=width, height=height, _environ={}
    )


@pytest.mark.parametrize(
    ("environment", "way"),
    [
        ({"TERM": "xterm-256color"}, "blocks"),
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM_PROGRAM": "ghostty"}, "kitty"),
        ({"TERM_PROGRAM": "iTerm.app"}, "iterm"),
        ({"TERM_PROGRAM": "WezTerm"}, "iterm"),
        ({"LC_TERMINAL": "iTerm2"}, "iterm"),
        ({"TERM": "screen-256color", "LC_TERMINAL": "iTerm2"}, "blocks"),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/tmux"}, "blocks"),
    ],
)
def test_each_terminal_gets_what_it_shows(environment, way):
    assert way_to_draw(console(), environment) == way


def test_a_terminal_without_colours_is_refused():
    with pytest.raises(ConfigError, match=r"this one has none \(TERM=dumb\)\. Leave --show out; --compare writes"):
        way_to_draw(console(colours=None), {"TERM": "dumb"})


def test_blocks_hold_two_pixels_in_a_character():
    terminal = console()
    draw(PICTURE, terminal, "blocks")
    cells = re.findall(r"\033\[38;2;(\d+);(\d+);(\d+);48;2;(\d+);(\d+);(\d+)m\u2580", terminal.file.getvalue())
    found = np.array(cells, dtype=np.uint8).reshape(3, 8, 2, 3).transpose(0, 2, 1, 3).reshape(6, 8, 3)
    assert np.array_equal(found, np.asarray(PICTURE))


@pytest.mark.parametrize(
    ("size", "width", "height", "wanted"), [((200, 50), 40, 24, (40, 5)), ((50, 200), 80, 23, (10, 20))]
)
def test_a_picture_keeps_its_shape_inside_the_terminal(size, width, height, wanted):
    terminal = console(width=width, height=height)
    draw(Image.new("RGB", size, "teal"), terminal, "blocks")
    lines = re.sub(r"\033\[[^m]*m", "", terminal.file.getvalue()).splitlines()
    assert (len(lines[0]), len(lines)) == wanted


def test_kitty_gets_the_picture_in_parts_that_it_takes():
    large = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    terminal = console()
    draw(large, terminal, "kitty")
    parts = re.findall(r"\033_G([^;]*);([^\033]*)\033\\", terminal.file.getvalue())
    assert len(parts) > 2
    assert max(len(data) for _, data in parts) <= 4096
    assert parts[0][0] == "a=T,f=100,c=56,m=1"
    assert [keys for keys, _ in parts[1:]] == ["m=1"] * (len(parts) - 2) + ["m=0"]
    sent = Image.open(io.BytesIO(base64.b64decode("".join(data for _, data in parts))))
    assert sent.tobytes() == large.tobytes()


def test_iterm_gets_the_picture_at_once():
    terminal = console()
    draw(PICTURE, terminal, "iterm")
    keys, data = re.fullmatch(r"\033\]1337;File=([^:]*):([^\a]*)\a\n", terminal.file.getvalue()).groups()
    assert keys == "inline=1;width=8;preserveAspectRatio=1"
    assert Image.open(io.BytesIO(base64.b64decode(data))).tobytes() == PICTURE.tobytes()


def test_show_without_a_terminal_is_refused_before_anything_is_written(refused, photos, model, tmp_path):
    said = refused("reconstruct", photos, "--out", "out", "--model", model, "--show", code=2)
    assert said.startswith("--show draws in a terminal with colours, and standard error is no terminal.")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_show_draws_in_a_terminal_and_leaves_the_results_alone(python, photos, model, tmp_path, monkeypatch):
    for name in ("TMUX", "KITTY_WINDOW_ID", "TERM_PROGRAM", "LC_TERMINAL", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    ours, theirs = os.openpty()
    words = ["reconstruct", photos / "a.png", "--out", tmp_path / "out", "--model", model, "--show", "--json"]
    done = python("from stepladder.cli import main; main()", *words, stderr=theirs)
    os.close(theirs)
    drawn = read_all(ours)
    assert done.returncode == 0, drawn
    assert done.stdout.startswith("{")
    assert "\u2580" not in done.stdout
    assert drawn.count("\u2580") >= 42 * 5  # two pictures of 17 x 9 and a gap of 8
    assert "a.png: original left, reconstruction right" in drawn


def read_all(terminal: int) -> str:
    """What was written to a pseudo-terminal whose other end is closed."""
    found = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError as error:  # how Linux says that the other end is closed
            assert error.errno == errno.EIO
            break
        if not part:
            break
        found += part
    os.close(terminal)
    return found.decode("utf-8")
