"""Latent files: what comes back, what fits a model, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from latent_fakes import CODES, FITS, content, refusal, rewritten, seal, written
from stepladder.errors import DataError, OutputError
from stepladder.latents import LatentFile, StoredLatent, read_latents, write_latents
from stepladder.layouts import GridLayout, TokenLayout


@pytest.fixture
def path(tmp_path):
    return written(tmp_path / "z.safetensors", content("b", "a"))


@pytest.fixture
def codes(tmp_path):
    return written(tmp_path / "codes.safetensors", CODES)


def test_latents_come_back_bit_for_bit_in_the_order_of_their_names(path):
    original, read = content("b", "a"), read_latents(path)
    assert (read.model, read.fingerprint) == ("tiny", "f00d")
    assert [stored.name for stored in read.latents] == ["a", "b"]
    assert [stored.size for stored in read.latents] == [(9, 17)] * 2
    for stored, before in zip(read.latents, reversed(original.latents), strict=True):
        assert torch.equal(stored.values, before.values)


def test_latents_of_any_precision_and_layout_are_stored_in_single(tmp_path):
    latent = torch.randn(3, 2, 16).permute(2, 1, 0).to(torch.bfloat16)
    stored = StoredLatent(name="a", values=latent, size=(16, 24))
    write_latents(tmp_path / "z", LatentFile(model="m", fingerprint="f", latents=(stored,)))
    assert torch.equal(read_latents(tmp_path / "z").latents[0].values, latent.float())


def test_names_may_be_in_any_language_and_hold_spaces(tmp_path):
    name = "Bildschirm\u202ffoto ü 写真 [1].tar"
    write_latents(tmp_path / "z", content(name))
    assert read_latents(tmp_path / "z").latents[0].name == name


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\\b", "a\0b", "a\nb", "\udc80", "__metadata__"])
def test_names_that_cannot_be_files_are_neither_written_nor_read(tmp_path, name):
    with pytest.raises(DataError, match=r"cannot be stored\. Rename the image to a plain file name"):
        write_latents(tmp_path / "z", content(name))
    assert not (tmp_path / "z").exists()


def test_a_file_that_would_write_outside_its_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("stepladder.stored._is_plain", lambda name: True)
    write_latents(tmp_path / "z", content("../escape"))
    monkeypatch.undo()
    assert "odd name, values or size of '../escape'" in refusal(tmp_path / "z")


def test_two_latents_of_one_name_and_no_latents_are_refused(tmp_path):
    with pytest.raises(DataError, match="Two latents have the name 'a'"):
        write_latents(tmp_path / "z", content("a", "a"))
    with pytest.raises(DataError, match="no latents to write"):
        write_latents(tmp_path / "z", content())


def test_an_existing_file_stays_unless_forced(path):
    with pytest.raises(OutputError, match="exists already"):
        write_latents(path, content("c"))
    assert len(read_latents(path).latents) == 2
    write_latents(path, content("c"), force=True)
    assert [stored.name for stored in read_latents(path).latents] == ["c"]


def test_files_that_cannot_be_read_are_refused(tmp_path):
    assert refusal(tmp_path / "no") == f"Cannot read latents {tmp_path}/no: there is no such file. Check the path."
    assert "Cannot read latents" in refusal(tmp_path)


@pytest.mark.parametrize("data", [b"", b"hello", b"\x08\0\0\0\0\0\0\0{}      "])
def test_what_is_no_latent_file_is_refused(tmp_path, data):
    (tmp_path / "z").write_bytes(data)
    text = refusal(tmp_path / "z")
    assert "is no safetensors file, or it is damaged" in text or "holds no latents of images" in text


def test_a_safetensors_file_of_something_else_is_refused(tmp_path):
    save_file({"weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    assert "holds no latents of images. Accepted: what `stepladder encode` writes." in refusal(
        tmp_path / "model.safetensors"
    )


def test_another_format_version_is_refused(path):
    assert "has format version 4. Accepted: 1, 2 and 3." in refusal(rewritten(path, format_version="4"))


@pytest.mark.parametrize("change", ["sizes", "model", "fingerprint", "codebook_size"])
def test_changed_metadata_is_refused(codes, change):
    changes = {"sizes": '{"a": [10, 18]}', "model": "other", "fingerprint": "beef", "codebook_size": "1001"}
    rewritten(codes, sealed=False, **{change: changes[change]})
    assert "are damaged (their SHA-256 is not the one in the file)" in refusal(codes)


def test_files_of_versions_one_and_two_are_still_read(path, codes):
    for old, version in ((path, "1"), (codes, "2")):
        before = read_latents(old)
        after = read_latents(rewritten(old, format_version=version))
        assert all(torch.equal(a.values, b.values) for a, b in zip(before.latents, after.latents, strict=True))
        assert (after.model, after.codebook_size) == (before.model, before.codebook_size)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_latent_that_is_not_finite_is_neither_written_nor_read(path, tmp_path, value):
    broken = content("b")
    broken.latents[0].values[3, 1, 2] = value
    with pytest.raises(DataError, match=r"^Latent 'b' holds NaN or infinity\. Latents are finite\. Encode it again\.$"):
        write_latents(tmp_path / "new", broken)
    assert not (tmp_path / "new").exists()
    with safe_open(path, framework="pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in ("a", "b")}, file.metadata()
    tensors["b"][3, 1, 2] = value
    save_file(tensors, path, metadata=metadata | {"sha256": seal(tensors, metadata)})
    assert "are damaged ('b' holds NaN or infinity)" in refusal(path)


def test_sizes_that_are_nested_deeply_are_refused(path):
    assert "are damaged (it is nested too deeply)" in refusal(rewritten(path, sizes="[" * 10**5 + "]" * 10**5))


def test_a_cut_off_file_is_refused(path):
    data = path.read_bytes()
    for kept in (4, 60, len(data) - 1):
        path.write_bytes(data[:kept])
        assert "it is no safetensors file, or it is damaged" in refusal(path)


def test_a_flipped_byte_is_refused(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    assert "are damaged (their SHA-256 is not the one in the file). Encode the images again." in refusal(path)


@pytest.mark.parametrize(
    "sizes",
    [
        None,
        "nonsense",
        "[]",
        "{}",
        '{"a": [9, 17]}',
        '{"a": 3, "b": [9, 17]}',
        '{"a": [0, 1], "b": [9, 17]}',
        '{"a": [true, 1], "b": [9, 17]}',
        '{"a": [1.5, 1], "b": [9, 17]}',
    ],
)
def test_damaged_sizes_are_refused(path, sizes):
    assert "are damaged (" in refusal(rewritten(path, sizes=sizes))


@pytest.mark.parametrize("key", ["model", "fingerprint", "sha256"])
def test_missing_metadata_is_refused(path, key):
    assert f"are damaged ('{key}')" in refusal(rewritten(path, **{key: None}))


def test_the_file_reads_with_plain_safetensors(path):
    with safe_open(path, framework="np") as file:
        assert file.metadata()["format"] == "stepladder-latents"
        assert json.loads(file.metadata()["sizes"]) == {"a": [9, 17], "b": [9, 17]}
        assert file.get_tensor("a").dtype == np.float32


def test_latents_fit_the_model_that_made_them(path):
    read_latents(path).check_fits(**FITS)


def test_latents_of_another_encoder_do_not_fit(path):
    with pytest.raises(DataError, match=r"another encoder \(model 'tiny', fingerprint f00d\) than that of model 'big'"):
        read_latents(path).check_fits(**{**FITS, "model": "big", "fingerprint": "beef"})


@pytest.mark.parametrize("layout", [GridLayout(channels=4, stride=8), GridLayout(channels=16, stride=16)], ids=str)
def test_latents_of_another_shape_do_not_fit(path, layout):
    with pytest.raises(DataError, match=r"Latent 'a' has shape \(16, 2, 3\); model 'tiny' takes .* image of 17 x 9"):
        read_latents(path).check_fits(**{**FITS, "layout": layout})


def test_a_latent_that_contradicts_its_size_does_not_fit(path):
    read = read_latents(path)
    grown = replace(read, latents=(replace(read.latents[0], size=(90, 17)),))
    with pytest.raises(DataError, match="Name the model that encoded it"):
        grown.check_fits(**FITS)


def test_a_file_of_latents_holds_no_codebook(path):
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert set(metadata) == {"format", "format_version", "model", "fingerprint", "sizes", "sha256"}
    assert metadata["format_version"] == "3"


# -------------------------------------------------------------------------------------------------------------- tokens


def test_tokens_come_back_and_fit_models_of_as_many_tokens_and_of_their_size(tmp_path):
    stored = StoredLatent(name="a", values=torch.randn(6, 4), size=(32, 32))
    write_latents(tmp_path / "z", LatentFile(model="tiny", fingerprint="f00d", latents=(stored,)))
    read = read_latents(tmp_path / "z")
    assert torch.equal(read.latents[0].values, stored.values)
    read.check_fits(**{**FITS, "layout": TokenLayout(tokens=6, channels=4, side=32)})
    with pytest.raises(DataError, match=r"'a' has shape \(6, 4\); model 'tiny' takes \(8, 4\) for its image of 32"):
        read.check_fits(**{**FITS, "layout": TokenLayout(tokens=8, channels=4, side=32)})
    with pytest.raises(
        DataError, match=r"'a' is of an image of 32 x 32, a size that model 'tiny' does not take\. Name"
    ):
        read.check_fits(**{**FITS, "layout": TokenLayout(tokens=6, channels=4, side=64)})
    with pytest.raises(DataError, match=r"'a' has shape \(6, 4\); model 'tiny' takes \(16, 4, 4\)"):
        read.check_fits(**FITS)
