"""What engines say, in words for users."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from stepladder.errors import CheckpointError
from stepladder.runtime import load
from stepladder.runtime.sessions import open_graph, pick_engine


def engine(fail):
    """An onnxruntime whose sessions fail when they run."""

    class Session:
        def __init__(self, *_args, **_options):
            pass

        def get_outputs(self):
            return [SimpleNamespace(name="image")]

        def run(self, *_args):
            raise fail

    return SimpleNamespace(SessionOptions=SimpleNamespace, InferenceSession=Session)


def test_too_little_memory_is_what_it_is(monkeypatch, tmp_path):
    monkeypatch.setitem(
        sys.modules, "onnxruntime", engine(RuntimeError("Failed to allocate memory for requested buffer"))
    )
    run = open_graph(tmp_path, pick_engine("onnx", None, "float32", 1))
    with pytest.raises(
        MemoryError, match=r"Not enough memory .* Use smaller images, a smaller batch or a smaller tile\."
    ):
        run({})


def test_a_graph_that_does_not_run_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", engine(RuntimeError("shapes do not match")))
    with pytest.raises(
        CheckpointError, match=r"^onnxruntime fails in .*: shapes do not match\. .* Export the model again"
    ):
        open_graph(tmp_path, pick_engine("onnx", None, "float32", 1))({})


def test_openvino_runs_onnx_graphs_as_onnxruntime_does(folder, tokenizer):
    latent = np.random.default_rng(0).standard_normal((1, 4, 4, 4), dtype=np.float32)
    one, other = (
        load(folder, engine=name, threads=1).decode(latent, seeds=[3]) for name in ("onnxruntime", "openvino")
    )
    np.testing.assert_allclose(one, other, atol=2e-5)


def test_openvino_computes_in_half_precision_where_it_is_asked_to(folder):
    latent = np.random.default_rng(0).standard_normal((1, 4, 4, 4), dtype=np.float32)
    full, half = (
        load(folder, engine="openvino", precision=precision, threads=1).decode(latent, seeds=[3])
        for precision in ("float32", "bfloat16")
    )
    assert np.abs(full - half).mean() < 0.05
