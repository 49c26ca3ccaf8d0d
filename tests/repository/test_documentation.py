"""The pages name commands, targets and files that exist, and their tables are those of the records."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from benchmarks import record, tables
from stepladder.cli import app
from stepladder.presets import PRESETS
from stepladder.training.config import load_config

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "models").glob("*/*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


TRAINING = (ROOT / "docs" / "training.md").read_text("utf-8")


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
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {part for part in rest if part.startswith("--")} <= options | {"--help", "--debug"}


def test_the_readme_shows_every_command_of_this_version():
    shown = {line.split()[1] for line in commands()}
    assert shown == set(typer.main.get_command(app).commands)


@pytest.mark.parametrize("block", [body for language, body in FENCE.findall(TRAINING) if language == "toml"])
def test_the_configurations_in_the_pages_are_accepted(block: str, tmp_path):
    file = tmp_path / "config.toml"
    file.write_text(block, "utf-8")
    config = load_config(file, presets=PRESETS)
    assert config.data.train


def test_every_make_target_in_the_pages_is_in_the_makefile():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = {match[1] for line in lines_of_code() if (match := re.match(r"make ([a-z]+)$", line))}
    assert {"demo", "test", "check", "setup"} <= named <= targets


def test_every_target_of_the_makefile_is_phony_and_has_help():
    text = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z]+):", text, re.MULTILINE))
    assert targets == set(re.findall(r"^([a-z]+):.*  ## ", text, re.MULTILINE))
    assert targets == set(re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)[0].split())


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


def test_the_tables_of_the_pages_are_those_of_the_records():
    command = [sys.executable, "benchmarks/tables.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


ROW = {
    "model": "photo",
    "steps_per_stage": 8,
    "stages": 3,
    "network_evaluations": 24,
    "psnr_db": 20.5,
    "ssim": 0.75,
    "lpips_vgg": None,
    "rfid": None,
    "fd_efficientnet_lite0": 1.5,
    "colour_shift": 0.001,
    "seconds_per_image": 0.25,
    "batch": 1,
    "parameters": 1000,
}
REPORT = {"data": "/data/p.tar", "images": 2, "size": 256, "device": "cpu", "threads": 2, "rows": [ROW]}
RECORD = {"hardware": "a machine", "commit": "abc1234", "seed": 0, "command": "stepladder evaluate", "report": REPORT}


def test_a_table_has_a_line_for_each_row_and_no_column_without_values():
    faster = {**ROW, "steps_per_stage": 1, "network_evaluations": 3, "seconds_per_image": 0.05}
    text = tables.render({**RECORD, "report": {**REPORT, "rows": [ROW, faster]}})
    head, _, first, second, *_ = text.splitlines()
    assert head.startswith("| model | stages | evaluations | PSNR, dB |")
    assert "LPIPS" not in head
    assert first.startswith("| `photo@8` | 3 | 24 | 20.50 | 0.7500 | 1.50 |")
    assert first.endswith("| 1.0 x |")
    assert second.endswith("| 0.050 | 5.0 x |")
    assert "abc1234" in text
    assert "a machine" in text


def test_a_table_out_of_date_fails_the_check_and_is_mended_by_a_run(tmp_path, monkeypatch, capsys):
    results, page = tmp_path / "results", tmp_path / "README.md"
    results.mkdir()
    page.write_text("before\n<!-- table: t -->\n<!-- end table -->\nafter\n", "utf-8")
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "RESULTS", results)
    assert tables.main([]) == 0
    assert "Not measured yet" in page.read_text("utf-8")
    (results / "t.json").write_text(json.dumps(RECORD), "utf-8")
    assert tables.main(["--check"]) == 1
    assert capsys.readouterr().err == "error: tables of README.md are out of date. Run: make tables\n"
    assert tables.main([]) == 0
    assert tables.main(["--check"]) == 0
    assert page.read_text("utf-8").startswith("before\n<!-- table: t -->\n| model |")
    (results / "unseen.json").write_text(json.dumps(RECORD), "utf-8")
    assert tables.main(["--check"]) == 1
    assert "results/unseen.json is in no page" in capsys.readouterr().err


def test_a_record_without_its_commit_is_refused(tmp_path):
    path = tmp_path / "t.json"
    path.write_text(json.dumps({key: value for key, value in RECORD.items() if key != "commit"}), "utf-8")
    with pytest.raises(ValueError, match=r"t.json lacks \['commit'\]"):
        tables.load(path)


def test_a_record_names_the_data_and_not_where_it_lies():
    wrapped = record.wrap(REPORT, ["/data/p.tar", "photo@8", "--seed", "3"], data_name="our photographs")
    assert "/data" not in json.dumps(wrapped)
    assert wrapped["command"] == "stepladder evaluate 'our photographs' photo@8 --seed 3 --json"
    assert wrapped["seed"] == 3
    assert set(wrapped) == set(tables.RECORD_KEYS)
