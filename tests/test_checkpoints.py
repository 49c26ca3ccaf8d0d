"""Checkpoint folders: what is written, and every damage that is noticed."""

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stepladder import Tokenizer, presets
from stepladder.checkpoints import CONFIG_FILE, FORMAT_VERSION, WEIGHTS_FILE, read_checkpoint, write_checkpoint
from stepladder.errors import CheckpointError, ImageError, OutputError
from stepladder.images import to_pil


@pytest.fixture
def folder(tmp_path) -> Path:
    """A saved tokenizer."""
    Tokenizer(presets.tiny()).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change_config(folder: Path, **changes: object) -> None:
    file = folder / CONFIG_FILE
    description = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in description.items() if value is not None}))


def test_a_checkpoint_is_a_folder_of_two_files(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    description = json.loads((folder / CONFIG_FILE).read_text())
    assert set(description) == {"format_version", "sha256", "tokenizer"}
    assert description["format_version"] == FORMAT_VERSION == 1


def test_weights_come_back_bit_for_bit_and_integers_stay(tmp_path):
    generator = torch.Generator().manual_seed(0)
    weights = {
        "a": torch.randn(3, 4, 5, 6, generator=generator).to(memory_format=torch.channels_last),
        "b": torch.tensor(7),
        "c": torch.randn(4, 4, generator=generator).T,
    }
    write_checkpoint(tmp_path, {"x": [1]}, weights)
    config, found = read_checkpoint(tmp_path)
    assert config == {"x": [1]}
    assert set(found) == set(weights)
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in weights.items())
    write_checkpoint(tmp_path, {"x": [1]}, weights, dtype=torch.float16)
    _, found = read_checkpoint(tmp_path)
    assert (found["a"].dtype, found["b"].dtype) == (torch.float32, torch.int64)
    assert torch.equal(found["a"], weights["a"].half().float())


@pytest.mark.parametrize("place", [0.1, 0.5, 0.999])
def test_one_flipped_bit_in_the_weights_is_an_error(folder, place):
    file = folder / WEIGHTS_FILE
    blob = bytearray(file.read_bytes())
    blob[int(place * len(blob))] ^= 1
    file.write_bytes(blob)
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors is damaged: its SHA-256 is not the one in config\.json"
    ):
        Tokenizer.from_pretrained(folder)


def test_cut_off_and_empty_weights_are_an_error(folder):
    file = folder / WEIGHTS_FILE
    for content in (file.read_bytes()[:-1], b""):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match="is damaged"):
            Tokenizer.from_pretrained(folder)


def test_weights_that_are_no_safetensors_are_an_error_even_with_their_hash(folder):
    (folder / WEIGHTS_FILE).write_bytes(b"")
    change_config(folder, sha256="e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        Tokenizer.from_pretrained(folder)


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=rf"Cannot read .*{name}: No such file or directory\."):
        Tokenizer.from_pretrained(folder)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_format_version_is_refused(folder, version):
    change_config(folder, format_version=version)
    with pytest.raises(CheckpointError, match=rf"has format version {version}\. Accepted: 1\. Use the release"):
        Tokenizer.from_pretrained(folder)


@pytest.mark.parametrize("content", [b"{", b"\xff", b""])
def test_a_config_that_is_no_json_is_damaged(folder, content):
    (folder / CONFIG_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json is damaged: it is not JSON"):
        Tokenizer.from_pretrained(folder)


@pytest.mark.parametrize("key", ["sha256", "tokenizer"])
def test_a_config_without_a_part_is_damaged(folder, key):
    change_config(folder, **{key: None})
    with pytest.raises(CheckpointError, match=f"is damaged: '{key}' is missing"):
        Tokenizer.from_pretrained(folder)


def test_a_config_that_is_no_table_is_refused(folder):
    (folder / CONFIG_FILE).write_text("[]")
    with pytest.raises(CheckpointError, match="has format version None"):
        Tokenizer.from_pretrained(folder)


def test_an_unknown_key_in_the_config_is_refused_and_the_likely_one_named(folder):
    config = json.loads((folder / CONFIG_FILE).read_text())["tokenizer"]
    change_config(folder, tokenizer=config | {"latent_chanels": 4})
    with pytest.raises(CheckpointError, match=r"Unknown key 'latent_chanels'\. .* Did you mean 'latent_channels'\?"):
        Tokenizer.from_pretrained(folder)


def test_a_config_that_names_a_class_executes_nothing(folder):
    config = json.loads((folder / CONFIG_FILE).read_text())["tokenizer"]
    change_config(folder, tokenizer=config | {"encoder": {"kind": "os.system"}})
    with pytest.raises(
        CheckpointError, match=r"its kind is 'os\.system'\. Accepted: 'conv', 'mmdit', 'onnx', 'diffusers', 'files'\."
    ):
        Tokenizer.from_pretrained(folder)


def test_weights_of_another_network_are_refused(folder):
    config = json.loads((folder / CONFIG_FILE).read_text())["tokenizer"]
    change_config(folder, tokenizer=config | {"latent_channels": 4})
    with pytest.raises(CheckpointError, match=r"do not fit their config: .*size mismatch.* Export the model again"):
        Tokenizer.from_pretrained(folder)


@pytest.mark.parametrize("change", ["missing", "additional"])
def test_loading_is_strict(tmp_path, change):
    tokenizer = Tokenizer(presets.tiny())
    weights = dict(tokenizer.state_dict())
    if change == "missing":
        del weights["encoder.stem.bias"]
    else:
        weights["encoder.extra"] = torch.zeros(1)
    tokenizer.state_dict = lambda: weights
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"do not fit their config: .*encoder"):
        Tokenizer.from_pretrained(tmp_path)


def test_saving_again_replaces_the_files(folder):
    tokenizer = Tokenizer(presets.tiny())
    tokenizer.save_pretrained(folder)
    assert Tokenizer.from_pretrained(folder).fingerprint() == tokenizer.fingerprint()
    assert len(list(folder.iterdir())) == 2


def test_a_full_disk_leaves_the_old_checkpoint_and_nothing_half_written(folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"Cannot write .*model\.safetensors: No space left on device\. Free some"):
        Tokenizer(presets.tiny()).save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "model"):
        with pytest.raises(OutputError, match=r"Cannot make folder .* Choose another folder"):
            Tokenizer(presets.tiny()).save_pretrained(place)


def with_weight(folder: Path, name: str, change) -> None:
    """Changes one weight, and the hash with it."""
    weights = load_file(folder / WEIGHTS_FILE)
    weights[name] = change(weights[name])
    save_file(weights, folder / WEIGHTS_FILE)
    change_config(folder, sha256=hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_that_is_not_finite_is_named(folder, value, dtype):
    with_weight(
        folder,
        "encoder.stem.weight",
        lambda weight: weight.to(dtype).flatten().index_fill(0, torch.tensor([5]), value).view(weight.shape),
    )
    with pytest.raises(
        CheckpointError, match=r"^Weight 'encoder\.stem\.weight' of .* holds NaN or infinity\. Weights are"
    ):
        Tokenizer.from_pretrained(folder)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int32, torch.bool])
def test_a_weight_of_another_kind_of_number_is_refused_in_one_line(folder, dtype):
    with_weight(folder, "encoder.stem.weight", lambda weight: weight.to(dtype))
    with pytest.raises(CheckpointError) as caught:
        Tokenizer.from_pretrained(folder)
    assert "\n" not in str(caught.value)
    assert "encoder.stem.weight" in str(caught.value)


@pytest.mark.parametrize("text", ["[" * 10**5, '{"a":' * 10**5, "[" * 10**5 + "]" * 10**5])
def test_a_description_that_is_nested_deeply_is_refused(folder, text):
    (folder / CONFIG_FILE).write_text(text)
    with pytest.raises(CheckpointError, match=r"is damaged: it is not JSON \("):
        Tokenizer.from_pretrained(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bare_latent_that_is_not_finite_is_refused(value):
    tokenizer = Tokenizer(presets.tiny()).eval()
    latent = torch.zeros(2, *tokenizer.layout.shape((16, 16)))
    latent[1, 3] = value
    with pytest.raises(ValueError, match=r"^Latent 1 of 2 holds NaN or infinity\. Latents are finite numbers\. Encode"):
        tokenizer.decode(latent)


def test_an_image_that_is_no_number_does_not_turn_black():
    image = torch.zeros(3, 4, 4)
    image[1, 2, 3] = float("nan")
    with pytest.raises(ImageError, match=r"^The image holds NaN\. Pixels are numbers"):
        to_pil(image)
