"""Exports give what torch gives. What takes minutes is slow; the graph of the latent alone stands for tracing."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from export_fakes import filled, handing_on
from stepladder.encoders import LatentFilesConfig
from stepladder.errors import ConfigError, ExportError, MissingDependencyError, OutputError
from stepladder.export import Settings, export_model
from stepladder.export.backends import Written, check_backend, open_written, write_graph
from stepladder.export.checks import check_graph
from stepladder.export.graphs import Graph, graphs
from stepladder.presets import tiny_tokens
from stepladder.runtime import load, read_manifest
from stepladder.sampling.guidance import GuidanceConfig
from stepladder.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def context(tokenizer) -> Graph:
    return next(g for g in graphs(tokenizer.fuse(), steps=(1, 1), noise="drawn") if g.name == "context")


@pytest.fixture(scope="module")
def written(context, tmp_path_factory) -> Written:
    return write_graph(context, tmp_path_factory.mktemp("graph"), backend="onnx", opset=20)


def test_a_graph_takes_any_batch_and_size(context, written):
    run = open_written(context, written, "onnx")
    for sizes in ((1, 1, 1), (3, 3, 2), (1, 5, 1)):
        inputs = context.example(*sizes)
        for ours, theirs in zip(run(inputs), context.module(inputs), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_a_graph_has_the_opset_that_was_asked_for_and_tells_nothing_of_this_machine(written):
    (file,) = written.files
    assert [each.version for each in onnx.load(file).opset_import if each.domain == ""] == [20]
    assert b".py" not in file.read_bytes()


def test_a_difference_to_torch_is_an_error(context):
    def wrong(inputs):
        features, initial = context.module(inputs)
        return [features, initial + 0.01]

    with pytest.raises(
        ExportError, match=r"Output 'initial' of the exported graph 'context' differs from torch by 0.0"
    ):
        check_graph(context, wrong)


def test_another_shape_than_that_of_torch_is_an_error(context):
    with pytest.raises(ExportError, match=r"Output 'features' .* has shape \(1, 8\); torch gives \(1, 8, 1, 1\)"):
        check_graph(context, lambda inputs: [value.flatten(1) for value in context.module(inputs)])


class _Untraceable(torch.nn.Module):
    def forward(self, inputs):
        return [inputs[0] if inputs[0].sum().item() > 0 else -inputs[0]]


def test_what_cannot_be_traced_is_one_line(context, tmp_path):
    graph = Graph(name="odd", module=_Untraceable(), inputs=context.inputs, outputs=["out"])
    with pytest.raises(ExportError, match=r"Graph 'odd' cannot be exported to torch: .*Try another format or --opset"):
        write_graph(graph, tmp_path, backend="torch", opset=20)


def test_a_model_of_a_frozen_encoder_is_exported_without_it():
    config = replace(handing_on(), encoder=LatentFilesConfig(source="another model", stride=8))
    names = [graph.name for graph in graphs(filled(config), steps=(1, 1), noise="drawn")]
    assert names == ["decoder", "context", "stage0", "stage1"]


@torch.no_grad()
def test_features_may_have_a_finer_grid_than_the_latent():
    config = handing_on()
    finer = filled(replace(config, decoder=replace(config.decoder, estimate_width=12, estimate_depth=1)))
    found = {graph.name: graph for graph in graphs(finer, steps=(1, 1), noise="drawn")}
    for name in ("context", "stage0", "stage1"):
        inputs = found[name].example(1, 2, 1)
        assert all(value.isfinite().all() for value in found[name].module(inputs))
    latent = finer.layout.stride
    features = found["context"].module(found["context"].example(1, latent, 1))[0]
    assert features.shape[1:] == (12, latent * latent // 4, latent // 4)


@pytest.mark.parametrize("opset", [9, 99])
def test_an_opset_that_is_not_written_is_refused(tokenizer, tmp_path, opset):
    text = rf"Opset {opset} is not written\. Accepted: 18 to 23\. Leave --opset out for 20\."
    with pytest.raises(ConfigError, match=text):
        export_model(tokenizer, tmp_path / "out", Settings(opset=opset), name="tiny")
    assert not (tmp_path / "out").exists()


def test_int8_is_for_openvino_alone(tmp_path):
    with pytest.raises(ConfigError, match=r"int8 does not fit format 'onnx'\. Accepted: openvino\. Leave --int8 out\."):
        Settings(backend="onnx", calibration=tmp_path)


def test_a_guided_model_is_refused(tmp_path):
    guided = Tokenizer(replace(tiny_tokens(), guidance=GuidanceConfig(scale=2.0)))
    with pytest.raises(ConfigError, match=r"Guidance scale 2 of this model cannot be exported\. Accepted: models that"):
        export_model(guided, tmp_path / "out", Settings(), name="tiny")


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'stepladder\[onnx\]'"):
        check_backend("onnx")


def test_a_failed_export_leaves_nothing(tokenizer, tmp_path, monkeypatch):
    def fail(*_args, **_options):
        raise ExportError("no operator")

    monkeypatch.setattr("stepladder.export.folder.write_graph", fail)
    with pytest.raises(ExportError, match="no operator"):
        export_model(tokenizer, tmp_path / "out", Settings(), name="tiny")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "force", "text"),
    [
        ("manifest.json", False, "holds an export already. Pass --force to replace it, or name another --out."),
        ("photo.png", True, "holds other files. An export has a folder of its own. Name another --out."),
    ],
)
def test_what_is_in_the_way_stays(tokenizer, tmp_path, content, force, text):
    place = tmp_path / content
    place.write_text("kept")
    with pytest.raises(OutputError, match=text):
        export_model(tokenizer, tmp_path, Settings(), name="tiny", force=force)
    assert place.read_text() == "kept"


def test_a_file_in_the_way_stays(tokenizer, tmp_path):
    (tmp_path / "out").write_text("kept")
    with pytest.raises(OutputError, match=r"it is no folder\. Name another --out\."):
        export_model(tokenizer, tmp_path / "out", Settings(), name="tiny", force=True)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_a_whole_export_decodes_as_torch_does(tokenizer, tmp_path, backend):
    manifest = export_model(tokenizer, tmp_path / "out", Settings(backend=backend), name="tiny")
    assert manifest == read_manifest(tmp_path / "out")
    assert manifest.check.largest_difference < 1e-4
    latent = torch.randn(2, 4, 5, 3, generator=torch.Generator().manual_seed(1))
    ours = load(tmp_path / "out").decode(latent.numpy(), seeds=[1, 2])
    np.testing.assert_allclose(ours, tokenizer.decode(latent, seeds=[1, 2]).numpy(), atol=1e-4)


@pytest.mark.slow
def test_several_steps_and_zero_noise_decode_as_torch_does(tokenizer, tmp_path):
    export_model(tokenizer, tmp_path / "out", Settings(steps=2, noise="zero"), name="tiny")
    latent = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    model, expected = load(tmp_path / "out"), tokenizer.decode(latent, steps=2, noise="zero").numpy()
    *_, staged = model.decode_progressively(latent.numpy())
    for ours in (model.decode(latent.numpy()), staged):
        np.testing.assert_allclose(ours, expected, atol=1e-4)
    with pytest.raises(ValueError, match="was exported without noise and takes no seeds"):
        model.decode(latent.numpy(), seeds=[1, 2])


@pytest.mark.slow
def test_latents_of_tokens_decode_as_with_torch(tmp_path):
    tokenizer = filled(tiny_tokens())
    export_model(tokenizer, tmp_path / "out", Settings(steps=1), name="tiny")
    latent = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1))
    ours = load(tmp_path / "out").decode(latent.numpy(), seeds=[1, 2])
    np.testing.assert_allclose(ours, tokenizer.decode(latent, seeds=[1, 2], steps=1).numpy(), atol=1e-4)


@pytest.mark.slow
def test_programs_of_torch_export_decode_as_eager_does(tmp_path):
    tokenizer = filled(handing_on())
    manifest = export_model(tokenizer, tmp_path / "out", Settings(backend="torch"), name="tiny")
    assert manifest.opset is None
    program = torch.export.load(tmp_path / "out" / "decoder.pt2")
    eager = next(graph for graph in graphs(tokenizer.fuse(), steps=(1, 1), noise="drawn") if graph.name == "decoder")
    for check_guards, sizes in ((True, (2, 2, 3)), (False, (2, 2, 1))):  # one row or column needs them to be off
        inputs = eager.example(*sizes)
        for ours, theirs in zip(
            program.module(check_guards=check_guards)(inputs), eager.module(list(inputs)), strict=True
        ):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    with pytest.raises(
        ConfigError, match=r"exported to 'torch' does not run without torch\. Accepted: onnx and openvino"
    ):
        load(tmp_path / "out")
