"""A tiny frozen encoder as an ONNX file: one convolution of cells, whose weights follow from a seed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from stepladder.encoders import FrozenEncoder, OnnxEncoderConfig
from stepladder.presets import tiny
from stepladder.tokenizer import Tokenizer

CHANNELS, STRIDE = 6, 8


def write_onnx_encoder(path: Path, *, seed: int = 0, channels: int = CHANNELS, stride: int = STRIDE) -> Path:
    """Takes `image` (B, 3, H, W) in [0, 1]; its raw latents have another mean and deviation in each channel."""
    random = np.random.default_rng(seed)
    weight = random.normal(size=(channels, 3, stride, stride)).astype(np.float32) / stride
    bias = random.normal(size=channels).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "weight", "bias"], ["latent"], strides=[stride, stride])],
        "encoder",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["b", 3, "h", "w"])],
        [helper.make_tensor_value_info("latent", TensorProto.FLOAT, ["b", channels, "y", "x"])],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(path))
    return path


def save_decoder_of(encoder: Path, folder: Path) -> Path:
    """A model of its latents, as a training leaves one: it says by name alone where they come from."""
    found = OnnxEncoderConfig(source=str(encoder), image_range=(0.0, 1.0))
    fingerprint = FrozenEncoder(found, CHANNELS).measure_fingerprint()
    known = replace(found, source="the-encoder.onnx", fingerprint=fingerprint)
    Tokenizer(replace(tiny(), latent_channels=CHANNELS, encoder=known)).save_pretrained(folder)
    return folder


def onnx_weights(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias in such a file."""
    found = {value.name: numpy_helper.to_array(value) for value in onnx.load(str(path)).graph.initializer}
    return found["weight"], found["bias"]
