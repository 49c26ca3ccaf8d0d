"""The decoder that an encoder came with, measured beside a model of its latents."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from benchmarks import peer
from frozen_fakes import CHANNELS, STRIDE, write_onnx_encoder
from stepladder.encoders import OnnxEncoderConfig
from stepladder.presets import tiny
from stepladder.tokenizer import Tokenizer


def write_decoder(path: Path) -> Path:
    """A convolution of one cell to its pixels, without weights but for a bias: images of one grey."""
    values = 3 * STRIDE**2
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["latent", "weight", "bias"], ["cells"]),
            helper.make_node("DepthToSpace", ["cells"], ["image"], blocksize=STRIDE, mode="CRD"),
        ],
        "decoder",
        [helper.make_tensor_value_info("latent", TensorProto.FLOAT, ["b", CHANNELS, "h", "w"])],
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["b", 3, "y", "x"])],
        [
            numpy_helper.from_array(np.zeros((values, CHANNELS, 1, 1), np.float32), "weight"),
            numpy_helper.from_array(np.full(values, 0.5, np.float32), "bias"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    return path


@pytest.fixture
def files(tmp_path) -> tuple[str, str, str]:
    encoder, decoder = write_onnx_encoder(tmp_path / "encoder.onnx"), write_decoder(tmp_path / "decoder.onnx")
    config = OnnxEncoderConfig(source=encoder.name, image_range=(0.0, 1.0))
    Tokenizer(replace(tiny(), latent_channels=CHANNELS, encoder=config)).save_pretrained(tmp_path / "model")
    (tmp_path / "photos").mkdir()
    for index, grey in enumerate((100, 128)):
        Image.new("RGB", (32, 32), (grey,) * 3).save(tmp_path / "photos" / f"{index}.png")
    return str(decoder), str(encoder), str(tmp_path / "model")


def test_the_decoder_is_in_the_first_row_with_what_its_file_says(files, tmp_path, capsys):
    decoder, encoder, model = files
    assert peer.main([str(tmp_path / "photos"), decoder, encoder, f"{model}@1", "--size", "32"]) == 0
    first, second = json.loads(capsys.readouterr().out)["rows"]
    assert (first["model"], first["steps_per_stage"], first["stages"]) == ("decoder", 1, 1)
    assert first["parameters"] == 3 * STRIDE**2 * (CHANNELS + 1)
    assert first["gflop_per_image"] == pytest.approx(2 * 3 * STRIDE**2 * CHANNELS * 16 / 1e9)
    errors = [(value - 128) / 255 for value in (100, 128)]
    assert first["colour_shift"] == pytest.approx(np.mean(np.abs(errors)), abs=2e-3)
    assert second["model"] == model and second["parameters"] != first["parameters"]


def test_a_model_with_its_own_encoder_is_refused(files, tmp_path, capsys):
    decoder, encoder, _ = files
    assert peer.main([str(tmp_path / "photos"), decoder, encoder, "photo@1", "--size", "32"]) == 1
    assert "Model 'photo' has its own encoder" in capsys.readouterr().err
