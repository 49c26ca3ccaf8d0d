"""Decoders in 8 bits: calibrated on some images, checked on others."""

import sys

import numpy as np
import pytest
from PIL import Image

from stepladder.errors import ConfigError, ExportError, MissingDependencyError
from stepladder.export import Settings, export_model, int8
from stepladder.export import folder as export_folder
from stepladder.export.int8 import calibration_images
from stepladder.runtime import load, read_manifest


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for name in "abcd":
        small = Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        small.resize((64, 48), Image.Resampling.BICUBIC).save(folder / f"{name}.png")
    return folder


def test_too_few_images_are_refused(images):
    (images / "a.png").unlink()
    with pytest.raises(
        ConfigError, match=r"holds 3 images\. At least 4 are needed to calibrate and check int8\. Name a"
    ):
        calibration_images(images)


def test_calibration_images_are_central_squares(images):
    assert [each.shape for each in calibration_images(images)] == [(1, 3, 256, 256)] * 4
    assert [each.shape for each in calibration_images(images, 32)] == [(1, 3, 32, 32)] * 4


@pytest.mark.parametrize("wrong", ["images", "package"])
def test_what_int8_lacks_is_said_before_any_graph_is_written(tokenizer, images, tmp_path, monkeypatch, wrong):
    written = []
    monkeypatch.setattr(export_folder, "_write_all", lambda *_: written.append(1))
    expected: tuple = (ConfigError, "holds 3 images")
    if wrong == "images":
        (images / "a.png").unlink()
    else:
        monkeypatch.setitem(sys.modules, "nncf", None)
        expected = (MissingDependencyError, r"nncf, which is not installed.*pip install 'stepladder\[openvino\]'")
    with pytest.raises(expected[0], match=expected[1]):
        export_model(tokenizer, tmp_path / "out", Settings(backend="openvino", calibration=images), name="tiny")
    assert not written
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_int8_decoder_is_kept_where_it_keeps_the_quality_and_refused_elsewhere(
    tokenizer, images, tmp_path, monkeypatch
):
    settings = Settings(backend="openvino", calibration=images)
    monkeypatch.setattr(int8, "MAX_LOSS_DB", 100.0)
    monkeypatch.setattr(int8, "_FEW_CHANNELS", 3)  # the tiny network has no more than 8
    manifest = export_model(tokenizer, tmp_path / "out", settings, name="tiny")
    assert manifest == read_manifest(tmp_path / "out")
    assert (manifest.precision, manifest.check.quality_loss_db < 100) == ("int8", True)
    assert "FakeQuantize" in (tmp_path / "out" / "decoder.xml").read_text("utf-8")
    assert "FakeQuantize" not in (tmp_path / "out" / "encoder.xml").read_text("utf-8")
    assert load(tmp_path / "out").decode(np.zeros((1, 4, 4, 4), np.float32)).shape == (1, 3, 32, 32)

    monkeypatch.setattr(int8, "MAX_LOSS_DB", -100.0)
    with pytest.raises(
        ExportError, match=r"int8 loses .* dB on 2 images of tiny\. Accepted: up to -100\.0 dB\. Nothing"
    ):
        export_model(tokenizer, tmp_path / "other", settings, name="tiny")
    assert not (tmp_path / "other").exists()
