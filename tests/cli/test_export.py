"""`stepladder export`; what it writes is tested in tests/export."""

import json
from pathlib import Path

import pytest


def test_export_of_one_format_prints_what_it_wrote(run, model, monkeypatch):
    from stepladder.export import folder

    kept = folder.graphs
    monkeypatch.setattr(
        folder, "graphs", lambda *args, **options: [g for g in kept(*args, **options) if g.name == "context"]
    )
    result = run("export", "torch", f"{Path(model).resolve()}@1", "--out", "out", "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["backend"] == "torch"
    assert report["model"] == f"{Path(model).resolve().name}@1"  # not where it lies
    assert report["graphs"]["context"]["inputs"] == ["latent"]
    assert report["check"]["largest_difference"] < 1e-5
    assert report["bytes"] > 1000
    again = run("export", "torch", f"{model}@1", "--out", "out")
    assert "out holds an export already. Pass --force to replace it" in again.stderr


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("onnx", "nope"), 1, "Unknown model 'nope'"),
        (("tflite", "MODEL"), 2, "'tflite' is not one of"),
        (("onnx", "MODEL", "--opset", 9), 2, "Opset 9 is not written. Accepted: 18 to 23. Leave --opset out for 20."),
        (
            ("torch", "MODEL", "--int8", "."),
            2,
            "int8 does not fit format 'torch'. Accepted: openvino. Leave --int8 out.",
        ),
    ],
)
def test_what_cannot_be_exported_is_one_line(refused, model, words, code, text):
    assert text in refused("export", *(model if word == "MODEL" else word for word in words), "--out", "out", code=code)
