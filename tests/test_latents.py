import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from stepladder.errors import DataError, OutputError
from stepladder.latents import LatentFile, StoredLatent, index_dtype, read_latents, write_latents
from stepladder.layouts import GridLayout, TokenLayout

FITS = {"model": "tiny", "fingerprint": "f00d", "layout": GridLayout(channels=16, stride=8)}


def content(*names, size=(9, 17)):
    generator = torch.Generator().manual_seed(0)
    shape = (16, -(-size[0] // 8), -(-size[1] // 8))
    latents = [StoredLatent(name=name, values=torch.randn(shape, generator=generator), size=size) for name in names]
    return LatentFile(model="tiny", fingerprint="f00d", latents=tuple(latents))


def indices(*values, codebook_size=1000, size=(9, 17)):
    """A file of one image, `a`."""
    stored = StoredLatent(name="a", values=torch.tensor(values), size=size)
    return LatentFile(model="tiny", fingerprint="f00d", codebook_size=codebook_size, latents=(stored,))


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "z.safetensors"
    write_latents(path, content("b", "a"))
    return path


@pytest.fixture
def codes(tmp_path):
    """Indices into 1,000 codes, of an image of 17 x 9."""
    path = tmp_path / "codes.safetensors"
    write_latents(path, indices([0, 1, 2], [300, 500, 999]))
    return path


def rewritten(path, *, sealed=True, **changes):
    """The same file with other metadata, and a hash that fits unless `sealed` is False; None removes a key."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = {**file.metadata(), **changes}
    metadata = {key: value for key, value in metadata.items() if value is not None}
    if sealed and "sha256" not in changes:
        metadata["sha256"] = seal(tensors, metadata)
    save_file(tensors, path, metadata=metadata)
    return path


def seal(tensors, metadata):
    """The hash of a file as its documentation says."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name}\0{tuple(tensors[name].shape)}\0".encode() + tensors[name].numpy().tobytes())
    if metadata["format_version"] == "3":
        text = json.dumps({key: metadata[key] for key in sorted(metadata) if key != "sha256"})
        digest.update(text.encode())
    return digest.hexdigest()


def refusal(path):
    with pytest.raises(DataError) as caught:
        read_latents(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


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


# ------------------------------------------------------------------------------------------------------------- indices


@pytest.mark.parametrize(
    ("codebook_size", "dtype"),
    [
        (2, torch.uint8),
        (256, torch.uint8),
        (257, torch.uint16),
        (65536, torch.uint16),
        (65537, torch.int32),
        (2**31 - 1, torch.int32),
    ],
)
def test_indices_are_stored_in_the_smallest_integers_that_hold_the_codebook(tmp_path, codebook_size, dtype):
    write_latents(tmp_path / "z", indices(0, 1, codebook_size - 1, codebook_size=codebook_size))
    with safe_open(tmp_path / "z", framework="pt") as file:
        assert file.get_tensor("a").dtype == dtype == index_dtype(codebook_size)
    read = read_latents(tmp_path / "z")
    assert read.codebook_size == codebook_size
    assert read.latents[0].values.dtype == torch.int64
    assert read.latents[0].values.tolist() == [0, 1, codebook_size - 1]
    assert read.stored_bytes(read.latents[0]) == 3 * dtype.itemsize


def test_a_file_of_indices_names_the_size_of_its_codebook(codes):
    with safe_open(codes, framework="np") as file:
        assert file.metadata()["codebook_size"] == "1000"
        assert file.metadata()["codebook_size"] == "1000"
        assert file.get_tensor("a").tolist() == [[0, 1, 2], [300, 500, 999]]


def test_bits_per_pixel_are_those_of_the_values_over_the_pixels(path, codes):
    latents, of_codes = read_latents(path), read_latents(codes)
    assert latents.bits_per_pixel(latents.latents[0]) == pytest.approx(32 * 16 * 2 * 3 / (9 * 17))
    assert of_codes.bits_per_pixel(of_codes.latents[0]) == pytest.approx(6 * np.log2(1000) / (9 * 17))


def test_indices_fit_the_model_that_made_them(codes):
    read_latents(codes).check_fits(**FITS, codebook_size=1000)


def test_indices_of_tokens_fit_a_model_of_tokens(tmp_path):
    write_latents(tmp_path / "z", indices(5, 6, 7, size=(32, 32)))
    read = read_latents(tmp_path / "z")
    fits = {**FITS, "layout": TokenLayout(tokens=3, channels=4, side=32), "codebook_size": 1000}
    read.check_fits(**fits)
    with pytest.raises(DataError, match=r"'a' has shape \(3,\); model 'tiny' takes \(4,\) for its image of 32 x 32"):
        read.check_fits(**{**fits, "layout": TokenLayout(tokens=4, channels=4, side=32)})


@pytest.mark.parametrize(("codebook_size", "takes"), [(512, "indices of 512 codes"), (None, "latents")])
def test_indices_of_another_codebook_do_not_fit(codes, codebook_size, takes):
    with pytest.raises(DataError, match=rf"file holds indices of 1,000 codes; model 'tiny' takes {takes}\. Name"):
        read_latents(codes).check_fits(**FITS, codebook_size=codebook_size)


def test_latents_do_not_fit_a_quantised_model(path):
    with pytest.raises(DataError, match=r"The file holds latents; model 'tiny' takes indices of 240 codes\. Name"):
        read_latents(path).check_fits(**FITS, codebook_size=240)


def test_indices_of_another_shape_or_encoder_do_not_fit(codes):
    read = read_latents(codes)
    with pytest.raises(DataError, match=r"has shape \(2, 3\); model 'tiny' takes \(1, 2\) for its image of 17 x 9"):
        read.check_fits(**{**FITS, "layout": GridLayout(channels=4, stride=16)}, codebook_size=1000)
    with pytest.raises(DataError, match="come from another encoder"):
        read.check_fits(**{**FITS, "fingerprint": "beef"}, codebook_size=1000)


@pytest.mark.parametrize("index", [-1, 1000])
def test_indices_outside_the_codebook_are_not_written(tmp_path, index):
    with pytest.raises(DataError, match=rf"store latents: index {index} of 'a' is outside the codebook, 0 to 999\."):
        write_latents(tmp_path / "z", indices(3, index))
    assert not (tmp_path / "z").exists()


def test_indices_outside_the_codebook_are_refused(codes):
    text = refusal(rewritten(codes, codebook_size="999"))
    assert "are damaged (index 999 of 'a' is outside the codebook, 0 to 998). Encode the images again." in text


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"codebook_size": None}, "are damaged (odd name, values or size of 'a')"),
        ({"codebook_size": "many"}, "are damaged (invalid literal"),
        ({"codebook_size": "0"}, "are damaged (odd codebook size 0)"),
        ({"codebook_size": "4294967296"}, "are damaged (odd codebook size 4294967296)"),
        ({"codebook_size": "100000"}, "are damaged (odd name, values or size of 'a')"),
    ],
)
def test_damaged_files_of_indices_are_refused(codes, changes, text):
    assert text in refusal(rewritten(codes, **changes))
