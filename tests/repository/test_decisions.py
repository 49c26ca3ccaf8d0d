"""What stages decide: a report, a table and a picture."""

import json

from PIL import Image

from benchmarks import decisions, tables
from image_fakes import encoded
from stepladder import presets
from stepladder.tokenizer import Tokenizer


def test_every_stage_of_every_model_has_a_row_and_every_model_a_line_of_the_picture(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    for n in range(2):
        (tmp_path / "photos" / f"{n}.png").write_bytes(encoded(n, width=70, height=50))
    Tokenizer(presets.tiny()).save_pretrained(tmp_path / "model")
    words = [str(tmp_path / "photos"), f"{tmp_path}/model@1", f"{tmp_path}/model@2", "--size", "32", "--seeds", "2"]
    assert decisions.main([*words, "--picture", str(tmp_path / "out.png")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["images"], report["seeds"]) == (2, 2)
    assert [(row["steps_per_stage"], row["stage"]) for row in report["rows"]] == [
        (steps, stage) for steps in (1, 2) for stage in range(3)
    ]
    with Image.open(tmp_path / "out.png") as drawn:
        assert drawn.size == (5 * 32 + 4 * 8, 2 * 32 + 8)  # original, reconstruction, three stages
    record = {"hardware": "a machine", "commit": "abc1234", "seed": 0, "command": "python", "report": report}
    lines = tables.render(record).splitlines()
    assert lines[0] == "| model | stage | downscale | spread over seeds | decided by the stage |"
    assert lines[2] == "| `model@1` | 0 | 4 | 0.0000 | 0.0000 |"  # fresh weights add nothing
    assert "2 seeds" in lines[-1]


def test_a_model_that_is_not_there_is_one_line(tmp_path, capsys):
    (tmp_path / "0.png").write_bytes(encoded(0))
    assert decisions.main([str(tmp_path), "nope"]) == 1
    assert capsys.readouterr().err.startswith("error: Unknown model 'nope'")
