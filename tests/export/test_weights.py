"""Weights that several graphs share lie in one file, once."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from stepladder.errors import CheckpointError
from stepladder.export.backends import Written
from stepladder.export.weights import share_weights
from stepladder.runtime.sessions import open_graph, pick_engine

WEIGHT = np.random.default_rng(0).standard_normal((24, 24)).astype(np.float32)
SMALL = np.full((1,), 0.5, np.float32)


def written(folder, backend, name, *weights) -> Written:
    """A graph that multiplies its input by one weight after the other, and by a small one."""
    weights = [*weights, SMALL]
    names = [f"w{place}" for place in range(len(weights))]
    flow = ["x", *(f"x{place}" for place in range(1, len(weights))), "y"]
    kinds = ["MatMul" if weight.ndim == 2 else "Mul" for weight in weights]
    graph = helper.make_graph(
        [helper.make_node(kind, [flow[i], names[i]], [flow[i + 1]]) for i, kind in enumerate(kinds)],
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 24])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 24])],
        [numpy_helper.from_array(weight, key) for weight, key in zip(weights, names, strict=True)],
    )
    file = folder / f"{name}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)
    if backend == "onnx":
        return Written(files=(file,))
    import openvino

    place = file.with_suffix(".xml")
    openvino.save_model(openvino.convert_model(file), place, compress_to_fp16=False)
    file.unlink()
    return Written(files=(place, place.with_suffix(".bin")))


def run(shared: Written, backend):
    settings = pick_engine(backend, None, "float32", 1)
    return open_graph(shared.files[0], settings, weights=shared.weights)({"x": np.eye(24, dtype=np.float32)})["y"]


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_a_weight_of_several_graphs_is_stored_once_and_the_graphs_run_as_before(tmp_path, backend):
    weights = {"decoder": (WEIGHT, WEIGHT + 1), "stage0": (WEIGHT,), "stage1": (WEIGHT + 1, WEIGHT)}
    graphs = {name: written(tmp_path, backend, name, *held) for name, held in weights.items()}
    before = {name: run(graph, backend) for name, graph in graphs.items()}
    shared = share_weights(graphs)
    assert {graph.weights for graph in shared.values()} == {tmp_path / "decoder.bin"}
    assert 2 * WEIGHT.nbytes <= (tmp_path / "decoder.bin").stat().st_size < 2.2 * WEIGHT.nbytes
    assert set(tmp_path.iterdir()) == {tmp_path / "decoder.bin", *(graph.files[0] for graph in graphs.values())}
    for name, graph in shared.items():
        np.testing.assert_array_equal(run(graph, backend), before[name])


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_shared_graphs_are_shared_anew_when_one_of_them_changed(tmp_path, backend):
    shared = share_weights({name: written(tmp_path, backend, name, WEIGHT) for name in ("decoder", "stage0")})
    again = share_weights({**shared, "stage0": written(tmp_path, backend, "stage0", WEIGHT + 1)})
    np.testing.assert_allclose(run(again["decoder"], backend), 0.5 * WEIGHT, atol=1e-6)
    np.testing.assert_allclose(run(again["stage0"], backend), 0.5 * (WEIGHT + 1), atol=1e-6)


def test_openvino_runs_an_onnx_graph_of_shared_weights(tmp_path):
    (shared,) = share_weights({"decoder": written(tmp_path, "onnx", "decoder", WEIGHT)}).values()
    found = open_graph(shared.files[0], pick_engine("onnx", "openvino", "float32", 1), weights=shared.weights)
    np.testing.assert_allclose(found({"x": np.eye(24, dtype=np.float32)})["y"], 0.5 * WEIGHT, atol=1e-6)


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_weights_that_end_early_are_one_line(tmp_path, backend):
    (shared,) = share_weights({"decoder": written(tmp_path, backend, "decoder", WEIGHT)}).values()
    shared.weights.write_bytes(shared.weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"does not take .*decoder\.(onnx|xml): .* Export the model again"):
        run(shared, backend)
