"""Latent files that hold indices into a codebook."""

import numpy as np
import pytest
import torch
from safetensors import safe_open

from latent_fakes import CODES, FITS, content, indices, refusal, rewritten, written
from stepladder.errors import DataError
from stepladder.latents import index_dtype, read_latents, write_latents
from stepladder.layouts import GridLayout, TokenLayout


@pytest.fixture
def path(tmp_path):
    return written(tmp_path / "z.safetensors", content("b", "a"))


@pytest.fixture
def codes(tmp_path):
    return written(tmp_path / "codes.safetensors", CODES)


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
