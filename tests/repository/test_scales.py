"""Images of stages at their own scale: a report and a table."""

import json
import math

import pytest
import torch

from benchmarks import scales, tables
from image_fakes import encoded
from stepladder import presets
from stepladder.images import load_image, to_tensor
from stepladder.measure.metrics import psnr, quantise
from stepladder.sampling.scales import down
from stepladder.tokenizer import Tokenizer
from tokenizer_fakes import built

pytestmark = pytest.mark.usefixtures("few_features")


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(3):
        (folder / f"{n}.png").write_bytes(encoded(n, width=64, height=64))
    return folder


def measured(capsys, *words):
    assert scales.main([*map(str, words), "--size", "64", "--batch", "2"]) == 0
    return json.loads(capsys.readouterr().out)


def test_stages_that_add_nothing_are_as_good_as_the_initial_estimate_at_every_scale(photos, tmp_path, capsys):
    Tokenizer(presets.tiny()).save_pretrained(tmp_path / "model")
    report = measured(capsys, photos, f"{tmp_path}/model@1")
    assert [(row["stage"], row["scale_side"]) for row in report["rows"]] == [(0, 16), (1, 32), (2, 64)]
    for row in report["rows"]:
        assert row["stage_psnr_db"] == pytest.approx(row["initial_psnr_db"], abs=1e-3)
        assert row["stage_fd"] == pytest.approx(row["initial_fd"], abs=0.1)
    record = {"hardware": "a machine", "commit": "abc1234", "seed": 0, "command": "python", "report": report}
    lines = tables.render(record).splitlines()
    assert lines[2].startswith("| `model@1` | 0 | 16 | ")
    assert "photos at 64 x 64, seed 0; a machine, cpu, " in lines[-1]


def test_a_stage_is_compared_with_the_originals_at_its_scale_whatever_the_batch(photos, tmp_path, capsys):
    tokenizer = built(presets.tiny())
    tokenizer.save_pretrained(tmp_path / "model")
    report = measured(capsys, photos, f"{tmp_path}/model@2")
    images = torch.stack([to_tensor(load_image(path)) for path in sorted(photos.iterdir())])
    decoded = tokenizer.decode_progressively(tokenizer.encode(images), seeds=range(3), steps=2)
    for row, image, downscale in zip(report["rows"], decoded, (4, 2, 1), strict=True):
        expected = psnr(quantise(image), quantise(down(images, downscale))).mean().item()
        assert row["stage_psnr_db"] == pytest.approx(expected, abs=0.01)
        assert math.isfinite(row["stage_fd"])


def test_a_model_that_is_not_there_is_one_line(photos, capsys):
    assert scales.main([str(photos), "nope"]) == 1
    assert capsys.readouterr().err.startswith("error: Unknown model 'nope'")
