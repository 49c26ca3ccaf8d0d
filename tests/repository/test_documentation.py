"""The pages name commands, targets and files that exist."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from stepladder.cli import app
from stepladder.presets import PRESETS
from stepladder.training.config import load_config

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "models").rglob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


CONFIGURATIONS = [
    body
    for page in ("training", "frozen-encoders")
    for language, body in FENCE.findall((ROOT / "docs" / f"{page}.md").read_text("utf-8"))
    if language == "toml" and "preset" in body
]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def lines_of_code() -> Iterator[str]:
    """Lines of the pages' blocks that have no language, and code in the text; without comments."""
    for page in PAGES:
        text = page.read_text("utf-8")
        blocks = [body for language, body in FENCE.findall(text) if not language]
        inline = re.findall(r"`([^`]+)`", FENCE.sub("", text))
        for line in [*"\n".join(blocks).splitlines(), *inline]:
            yield " ".join(line.partition(" #")[0].split())


def commands() -> list[str]:
    return sorted({line for line in lines_of_code() if re.match(r"stepladder [a-z]", line)})


@pytest.mark.parametrize("line", commands())
def test_every_command_in_the_pages_is_one_with_these_options(line: str):
    word, *rest = shlex.split(line)[1:]
    command = typer.main.get_command(app).commands[word]
    if hasattr(command, "commands"):  # a group
        word, *rest = rest
        command = command.commands[word]
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {part for part in rest if part.startswith("--")} <= options | {"--help", "--debug"}


def test_the_readme_shows_every_command_of_this_version():
    shown = {line.split()[1] for line in commands()}
    assert shown == set(typer.main.get_command(app).commands)


@pytest.mark.parametrize("block", CONFIGURATIONS)
def test_the_configurations_in_the_pages_are_accepted(block: str, tmp_path):
    file = tmp_path / "config.toml"
    file.write_text(block, "utf-8")
    config = load_config(file, presets=PRESETS)
    assert config.data.train


def test_every_make_target_in_the_pages_is_in_the_makefile():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = {match[1] for line in lines_of_code() if (match := re.match(r"make ([a-z]+)$", line))}
    assert {"demo", "test", "check", "setup"} <= named <= targets


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_between_pages_leads_somewhere(page: Path):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text("utf-8"))
    assert not [link for link in links if "://" not in link and not (page.parent / link).exists()]


def test_the_map_of_the_readme_names_what_exists_and_leaves_no_module_out():
    text = (ROOT / "README.md").read_text("utf-8")
    rows = re.findall(r"^\| (`.+?) \|", text[text.index("## Map") :], re.MULTILINE)
    named = {path.rstrip("/") for row in rows for path in re.findall(r"`([^`]+)`", row)}
    package = ROOT / "src" / "stepladder"
    assert not [path for path in named if not ((ROOT / path).exists() or (package / path).exists())]
    parts = {part.name for part in package.iterdir() if not part.name.startswith("_") and part.name != "py.typed"}
    assert parts <= {Path(path).name for path in named}
