"""An exported model gives what the tokenizer gives."""

import json
import pkgutil
import re

import numpy as np
import pytest
import torch
from PIL import Image

from stepladder.errors import CheckpointError, ConfigError
from stepladder.runtime import load
from stepladder.runtime.manifest import MANIFEST_FILE
from stepladder.sampling.randomness import generator

SEEDS = [3, 2**40 + 1]


@pytest.fixture(scope="module")
def model(folder):
    return load(folder, threads=1)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Two of a size that fits nothing."""
    return torch.rand(2, 3, 75, 140, generator=generator(1)) * 2 - 1


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-5)


def test_encoding_is_that_of_torch_whole_and_in_tiles(model, tokenizer, images):
    for tile in (0, 64):
        close(model.encode(images.numpy(), tile=tile).latent, tokenizer.encode(images, tile=tile).latent)


@pytest.mark.parametrize("tile", [0, 64])
def test_decoding_is_that_of_torch_with_the_same_seeds_whole_and_in_tiles(model, tokenizer, images, tile):
    code = tokenizer.encode(images)
    ours = model.decode(model.encode(images.numpy()), seeds=SEEDS, tile=tile)
    assert ours.shape == (2, 3, 75, 140)
    close(ours, tokenizer.decode(code, seeds=SEEDS, tile=tile))


def test_zero_noise_is_that_of_torch_whole_and_in_tiles(model, tokenizer, images):
    code = model.encode(images.numpy())
    for tile in (0, 64):
        close(model.decode(code, noise="zero", tile=tile), tokenizer.decode(tokenizer.encode(images), noise="zero"))
    with pytest.raises(ValueError, match=r"Seeds do not fit noise 'zero', which draws none\. Leave"):
        model.decode(code, seeds=SEEDS, noise="zero")


def test_every_stage_is_that_of_torch(model, tokenizer, images):
    code = tokenizer.encode(images)
    ours = model.decode_progressively(code.latent.numpy(), seeds=SEEDS, size=(75, 140))
    for mine, theirs in zip(ours, tokenizer.decode_progressively(code, seeds=SEEDS), strict=True):
        assert mine.shape == tuple(theirs.shape)
        close(mine, theirs)


def test_without_seeds_images_start_from_0_1_2(model, images):
    latent = model.encode(images.numpy()).latent
    assert (model.decode(latent) == model.decode(latent, seeds=[0, 1])).all()


def test_an_image_decodes_the_same_alone_and_in_a_batch(model, images):
    latent = model.encode(images.numpy()).latent
    together = model.decode(latent, seeds=SEEDS)
    np.testing.assert_allclose(together[1:], model.decode(latent[1:], seeds=SEEDS[1:]), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"seeds": [1]}, "1 seeds for 2 latents. Pass one seed for each image."),
        ({"size": (500, 8)}, "Size (500, 8) does not fit a latent that covers (80, 144). Pass a size up to that."),
        ({"tile": 60}, "Tile side 60 does not fit tiny. Accepted: 0, and multiples of 16"),
    ],
)
def test_what_does_not_fit_is_refused(model, images, change, text):
    with pytest.raises((ValueError, ConfigError), match=re.escape(text)):
        model.decode(model.encode(images.numpy()).latent, **change)


@pytest.mark.parametrize("latent", [np.zeros((1, 3, 4, 4), np.float32), np.full((1, 4, 4, 4), np.nan, np.float32)])
def test_a_latent_of_another_kind_is_refused(model, latent):
    with pytest.raises(
        ValueError, match=r"does not fit tiny, or is not finite\. Accepted: finite floats of a grid with 4"
    ):
        model.decode(latent)


@pytest.mark.untyped
def test_images_of_another_kind_are_refused(model):
    with pytest.raises(
        ValueError, match=r"Images have shape \(1, 3, 8, 8\) and dtype float64. Accepted: float32"
    ) as refused:
        model.encode(np.zeros((1, 3, 8, 8)))
    named = str(refused.value).rpartition("Use ")[2].removesuffix(".")
    to_array = pkgutil.resolve_name(named)
    assert to_array(Image.new("RGB", (2, 1))).shape == (3, 1, 2)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"engine": "tensorrt"}, "Engine 'tensorrt' does not run a model exported to onnx. Accepted: onnxruntime"),
        ({"precision": "bfloat16"}, "Precision 'bfloat16' does not fit onnxruntime. Accepted: float32 and auto"),
        ({"threads": -1}, "Threads are -1. Accepted: 1 or more, or 0 to let onnxruntime choose."),
    ],
)
def test_settings_that_do_not_fit_are_refused(folder, change, text):
    with pytest.raises(ConfigError, match=re.escape(text)):
        load(folder, **change)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_graph_that_is_another_one_is_refused(copy, engine):
    path = copy / MANIFEST_FILE
    manifest = json.loads(path.read_text("utf-8"))
    manifest["graphs"]["decoder"] |= {"file": "encoder.onnx", "sha256": manifest["graphs"]["encoder"]["sha256"]}
    path.write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(
        CheckpointError,
        match=r"encoder.onnx is another graph: its inputs are images. Accepted: latent, noise0, .* Export",
    ):
        load(copy, engine=engine).decode(np.zeros((1, 4, 4, 4), np.float32))


def test_a_folder_without_manifest_is_refused(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"is no exported model: manifest.json: No such file or directory. Accepted"
    ):
        load(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ('"format_version": 1', '"format_version": 9', "has format version 9. Accepted: 1."),
        ('"kind": "grid"', '"kind": "cube"', "cube"),
        ('"decoder.onnx"', '"../decoder.onnx"', "names a file elsewhere: '../decoder.onnx'. Export the model again."),
        (
            '"gone.onnx"',
            '"gone.onnx"',
            "is damaged: its SHA-256 is not the one in manifest.json. Copy or export it again.",
        ),
        ("{", "", "is damaged: it is not JSON"),
    ],
)
def test_a_damaged_or_foreign_folder_is_refused(copy, old, new, text):
    manifest = copy / MANIFEST_FILE
    if old == new:
        graph = copy / "decoder.onnx"
        graph.write_bytes(graph.read_bytes()[:-1] + b"?")
    else:
        manifest.write_text(manifest.read_text("utf-8").replace(old, new), "utf-8")
    with pytest.raises(CheckpointError, match=re.escape(text)):
        load(copy)


@pytest.mark.parametrize("name", ["stage1.onnx", "decoder.bin"])
def test_a_missing_graph_or_file_of_weights_is_refused(copy, name):
    (copy / name).unlink()
    with pytest.raises(CheckpointError, match=rf"Cannot read .*{name}: No such file or directory. Export the model"):
        load(copy)


def test_damaged_weights_are_refused(copy):
    weights = copy / "decoder.bin"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(CheckpointError, match=r"decoder.bin is damaged: its SHA-256 is not the one in manifest.json"):
        load(copy)


def test_all_graphs_but_the_encoder_share_their_weights(model, folder, tokenizer):
    assert {name: graph.weights for name, graph in model.manifest.graphs.items()} == {
        "encoder": None,
        **dict.fromkeys(("decoder", "context", "stage0", "stage1"), "decoder.bin"),
    }
    held = sum(parameter.nbytes for parameter in tokenizer.decoder.parameters())
    assert (folder / "decoder.bin").stat().st_size < 1.1 * held


def test_a_graph_that_the_engine_does_not_take_is_one_line(copy):
    from stepladder.runtime.manifest import sha256

    graph, manifest = copy / "encoder.onnx", copy / MANIFEST_FILE
    before = sha256(graph)
    graph.write_bytes(b"no graph")
    manifest.write_text(manifest.read_text("utf-8").replace(before, sha256(graph)), "utf-8")
    with pytest.raises(
        CheckpointError, match=r"onnxruntime does not take .*encoder.onnx: .*[^.]\. Export the model again"
    ):
        load(copy).encode(np.zeros((1, 3, 8, 8), np.float32))


def test_a_missing_engine_names_the_command_that_installs_it(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(
        ImportError, match=r"needs the package onnxruntime, which is not installed. .* pip install onnx"
    ):
        load(folder).encode(np.zeros((1, 3, 8, 8), np.float32))


def test_a_model_that_was_exported_without_encoder_says_so(copy):
    manifest = copy / MANIFEST_FILE
    data = json.loads(manifest.read_text("utf-8"))
    del data["graphs"]["encoder"]
    manifest.write_text(json.dumps(data), "utf-8")
    with pytest.raises(ConfigError, match=r"tiny was exported without an encoder: .* Encode with that model\."):
        load(copy).encode(np.zeros((1, 3, 8, 8), np.float32))
