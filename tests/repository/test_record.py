"""Recording a measurement: options before '--', the arguments of the command that measures after it."""

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks import record, tables

REPORT = {
    "device": "cpu",
    "data": "/somewhere/photos.tar",
    "seed": 3,
    "rows": [],
    "notes": {"rfid": f"no weights at {Path.home() / '.cache' / 'x.pth'}"},
}
SPEED = {"device": "cpu", "seed": 4, "rows": []}
DATA = ["--data-name", "d"]


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What was run instead of a measurement; the records go to `tmp_path`."""
    commands = []

    def fake_run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(
            command, 0, stdout=json.dumps(REPORT if "photos.tar" in " ".join(command) else SPEED)
        )

    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(record, "ROOT", tmp_path)
    monkeypatch.setattr(record, "commit", lambda: "abc1234")
    monkeypatch.setattr(record.subprocess, "run", fake_run)
    return commands


def test_a_record_names_data_command_commit_and_seed(ran, tmp_path) -> None:
    words = ["speed", "--data-name", "my photos", "--", "photos.tar", "photo@8", "--seed", "3"]
    assert record.main(words) == 0
    written = json.loads((tmp_path / "speed.json").read_text("utf-8"))
    assert set(written) == set(tables.RECORD_KEYS)
    assert written["command"] == "stepladder evaluate 'my photos' photo@8 --seed 3 --json"
    assert (written["commit"], written["seed"], written["report"]["data"]) == ("abc1234", 3, "my photos")
    assert ran[0][3:] == ["evaluate", "photos.tar", "photo@8", "--seed", "3", "--json"]


def test_paths_and_precision_need_the_data_alone(ran, tmp_path) -> None:
    for name in ("paths", "precision"):
        assert record.main([name, "--command", name, *DATA, "--", "photos.tar"]) == 0
        written = json.loads((tmp_path / f"{name}.json").read_text("utf-8"))
        assert written["command"] == f"python benchmarks/{name}.py d"


def test_a_record_tells_no_path_of_this_machine(ran, tmp_path) -> None:
    assert record.main(["speed", *DATA, "--", "/somewhere/photos.tar", "photo@8"]) == 0
    text = (tmp_path / "speed.json").read_text("utf-8")
    assert "/somewhere" not in text
    assert str(Path.home()) not in text
    assert json.loads(text)["report"]["notes"] == {"rfid": "no weights at ~/.cache/x.pth"}


def test_a_benchmark_is_recorded_without_data(ran, tmp_path) -> None:
    words = ["speed", "--command", "benchmark", "--", "photo@1", "models/photo-base@50", "--size", "256"]
    assert record.main(words) == 0
    written = json.loads((tmp_path / "speed.json").read_text("utf-8"))
    assert written["command"] == "stepladder benchmark photo@1 models/photo-base@50 --size 256 --json"
    assert (written["seed"], written["report"]) == (4, SPEED)
    assert ran[0][3:] == ["benchmark", "photo@1", "models/photo-base@50", "--size", "256", "--json"]


def test_the_cost_of_ladders_is_recorded_from_its_script(ran, tmp_path) -> None:
    assert record.main(["cost", "--command", "ladder-cost", "--", "--size", "512"]) == 0
    written = json.loads((tmp_path / "cost.json").read_text("utf-8"))
    assert written["command"] == "python benchmarks/ladder_cost.py --size 512"
    assert ran[0][1:] == [str(tmp_path / "benchmarks/ladder_cost.py"), "--size", "512"]
    assert record.main(["bare", "--command", "ladder-cost"]) == 0


def test_samplers_are_recorded_from_their_script_without_the_path_of_the_data(ran, tmp_path) -> None:
    words = ["steps", "--command", "samplers", "--data-name", "my photos", "--", "/somewhere/photos.tar", "photo"]
    assert record.main(words) == 0
    written = json.loads((tmp_path / "steps.json").read_text("utf-8"))
    assert written["command"] == "python benchmarks/samplers.py 'my photos' photo"
    assert written["report"]["data"] == "my photos"
    assert ran[0][1:] == [str(tmp_path / "benchmarks/samplers.py"), "/somewhere/photos.tar", "photo"]


def test_a_peer_is_recorded_without_the_paths_of_its_files(ran, tmp_path) -> None:
    files = ["/somewhere/photos.tar", "/elsewhere/decoder.onnx", "/elsewhere/encoder.onnx", "models/a@1"]
    assert record.main(["peer", "--command", "peer", "--data-name", "my photos", "--", *files]) == 0
    written = json.loads((tmp_path / "peer.json").read_text("utf-8"))
    assert written["command"] == "python benchmarks/peer.py 'my photos' decoder.onnx encoder.onnx models/a@1"
    assert ran[0][1:] == [str(tmp_path / "benchmarks/peer.py"), *files]


def test_an_accelerator_that_a_report_describes_is_found_by_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def describe(device):
        asked.append(str(device))
        return {"hardware": "A GPU", "cores": 8}

    monkeypatch.setattr(record, "describe_environment", describe)
    assert record.hardware("cuda (A GPU)") == "A GPU"
    assert record.hardware("cpu") == "A GPU, 8 cores"
    assert asked == ["cuda", "cpu"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["speed"], "name the data and at least one model after '--'"),
        (["speed", *DATA], "name the data and at least one model after '--'"),
        (["speed", *DATA, "--", "x"], "name the data and at least one model after '--'"),
        (
            ["speed", "--", "x", "photo"],
            "--data-name belongs to --command evaluate, decisions, paths, peer, precision, samplers, scales, which "
            "need it.",
        ),
        (["speed", "--command", "benchmark"], "name at least one model after '--'"),
        (["speed", "--command", "benchmark", *DATA, "--", "photo"], "--data-name belongs to --command evaluate"),
        (["s", "--command", "samplers", *DATA, "--", "photos.tar"], "name the data and a model after '--'"),
        (["speed", "--command", "info", "--", "photo"], "invalid choice: 'info'"),
    ],
)
def test_a_record_without_what_it_needs_is_refused(ran, tmp_path, capsys, words: list[str], said: str) -> None:
    with pytest.raises(SystemExit) as error:
        record.main(words)
    assert error.value.code == 2
    assert said in capsys.readouterr().err
    assert not ran
    assert not list(tmp_path.glob("*.json"))


def test_a_failed_measurement_leaves_no_record(ran, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, ""))
    assert record.main(["speed", *DATA, "--", "photos.tar", "photo@8"]) == 1
    assert not list(tmp_path.glob("*.json"))


def test_a_record_is_not_replaced_without_force(ran, tmp_path) -> None:
    words = ["speed", *DATA, "--", "photos.tar", "photo@8"]
    assert record.main(words) == 0
    with pytest.raises(SystemExit):
        record.main(words)
    assert record.main([*words[:3], "--force", *words[3:]]) == 0
    assert (tmp_path / "speed.json").is_file()
