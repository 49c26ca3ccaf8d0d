"""Tables that fit a terminal, and words of others that move no cursor."""

import io
import json
import re
import sys

import pytest
import torch

from stepladder.cli import benchmark
from stepladder.cli._output import counted, harmless, print_table, say, smaller
from stepladder.presets import tiny
from stepladder.tokenizer import Tokenizer


class Terminal(io.StringIO):
    def isatty(self):
        return True


HEADINGS = ("model", "side", "s/image", "min", "max", "faster")
ROW = ("models/photo-teacher@16", "256", "0.0001234", "0.0001111", "0.0005678", "123.45 x")


@pytest.fixture
def table(monkeypatch, capsys):
    """Prints a table to a terminal of some columns; gives its lines and what was said."""

    def table(columns, headings=HEADINGS, rows=(ROW,), **options):
        terminal = Terminal()
        monkeypatch.setattr(sys, "stdout", terminal)
        monkeypatch.setenv("COLUMNS", str(columns))
        print_table(headings, rows, **options)
        return re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue()).splitlines(), capsys.readouterr().err

    return table


@pytest.mark.parametrize("columns", [200, 80, 60, 50, 40, 20])
def test_a_table_fits_and_no_number_is_ever_cut(table, columns):
    lines, said = table(columns, spare=("min", "max", "side"))
    text = "\n".join(lines)
    assert "..." not in text
    assert "…" not in text
    assert "0.0001234" in text
    assert "123.45 x" in text
    left = [heading for heading in ("min", "max", "side") if heading not in text]
    assert left == ["min", "max", "side"][: len(left)]  # the first ones first
    if columns >= 50:
        assert max(map(len, lines)) <= columns
    else:  # what cannot be left out is shown whole, and the terminal breaks the lines
        assert left == ["min", "max", "side"]
    if left:
        listed = ", ".join(heading for heading in HEADINGS if heading in left)
        assert said == f"Left out to fit the terminal: {listed}. Widen it, or pass --json.\n"
    else:
        assert said == ""


def test_text_takes_several_lines_where_it_must(table):
    lines, _ = table(40, headings=("property", "value"), rows=[("description", "word " * 30)], numbers=False)
    assert max(map(len, lines)) <= 40
    assert sum(line.count("word") for line in lines) == 30


def test_where_no_terminal_is_nothing_is_left_out(monkeypatch, capsys):
    print_table(HEADINGS, [("m" * 300, *ROW[1:])], spare=("min", "max"))
    text = capsys.readouterr().out
    assert "m" * 300 in text
    assert "0.0001111" in text


def test_the_table_of_a_benchmark_fits_80_columns(table):
    stages = " + ".join(["0.0239"] * 3)
    cells = ("photo-base@50", "256", "48", "239", "0.000164", "1.60", "1.71", stages, "1024", "68 %", "10.00 x")
    lines, said = table(80, headings=benchmark._HEADINGS, rows=[cells], spare=benchmark._SPARE)
    assert max(map(len, lines)) <= 80
    assert all(f" {cell} " in lines[3] for cell in ("256", "48", "239", "0.000164", "1024", "10.00 x"))
    assert said.startswith("Left out to fit the terminal: min, max, s in each stage")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain ü 写真 x", "plain ü 写真 x"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("a\rb\nc\td\x9b", "a\\rb\\nc\\td\\x9b"),
        ("\ud800", "\\ud800"),
        ("evil\u202etxt", "evil\\u202etxt"),
    ],
)
def test_what_a_terminal_would_obey_is_spelt_out(text, expected, capsys):
    assert harmless(text) == expected
    say(text)
    assert capsys.readouterr().err == f"{expected}\n"


@pytest.mark.parametrize("text", ["\ud800 lone", "\x1b[2J\x1b[31mred", "a\nb"])
def test_a_description_moves_no_cursor_and_is_no_traceback(run, tmp_path, text):
    from dataclasses import replace

    Tokenizer(replace(tiny(), description=text)).save_pretrained(tmp_path / "m")
    result = run("info", tmp_path / "m")
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout
    assert harmless(text).split()[0] in result.stdout
    assert json.loads(run("info", tmp_path / "m", "--json").stdout)["description"] == text


@pytest.mark.parametrize(("number", "text"), [(0, "0 steps"), (1, "1 step"), (2, "2 steps"), (10000, "10,000 steps")])
def test_one_step_is_no_steps(number, text):
    assert counted(number, "step") == text


def test_without_memory_on_the_cpu_the_advice_is_not_to_use_the_cpu():
    assert smaller(MemoryError()) == "Use smaller images, or a smaller --batch or --tile where the command has one."
    assert smaller(torch.OutOfMemoryError()).endswith("has one, or pass --device cpu.")
