"""Recording a measurement: options before '--', the arguments of `stepladder evaluate` after it."""

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks import record

REPORT = {"device": "cpu", "data": "/somewhere/photos.tar", "rows": []}


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def fake_run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 0, stdout=json.dumps(REPORT))

    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(record, "ROOT", tmp_path)
    monkeypatch.setattr(record, "commit", lambda: "abc1234")
    monkeypatch.setattr(record.subprocess, "run", fake_run)
    return tmp_path


def test_a_record_names_data_command_commit_and_seed(results: Path) -> None:
    words = ["speed", "--data-name", "my photos", "--", "photos.tar", "photo@8", "--seed", "3"]
    assert record.main(words) == 0
    written = json.loads((results / "speed.json").read_text("utf-8"))
    assert written["command"] == "stepladder evaluate 'my photos' photo@8 --seed 3 --json"
    assert (written["commit"], written["seed"], written["report"]["data"]) == ("abc1234", 3, "my photos")


@pytest.mark.parametrize("words", [["speed"], ["speed", "--data-name", "d"], ["speed", "--data-name", "d", "--", "x"]])
def test_a_record_without_data_or_models_is_refused(results: Path, words: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        record.main(words)
    assert error.value.code == 2
    assert not list(results.glob("*.json"))


def test_a_record_is_not_replaced_without_force(results: Path) -> None:
    words = ["speed", "--data-name", "d", "--", "photos.tar", "photo@8"]
    assert record.main(words) == 0
    with pytest.raises(SystemExit):
        record.main(words)
    assert record.main([*words[:3], "--force", *words[3:]]) == 0
    assert (results / "speed.json").is_file()
