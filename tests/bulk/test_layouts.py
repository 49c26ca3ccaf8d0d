"""Each layout is read back by the rules of the trainers that use it."""

import gc
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from image_fakes import encoded
from stepladder.images import centre_crop_resize, load_image, to_tensor
from stepladder.tokenizer import Tokenizer

GOOD = [n for n in range(12) if n != 5]


@pytest.fixture
def expected(models):
    """Latents of the good images and of their mirror images, encoded as the shards do."""

    def expected(kind="plain", flip=False):
        tokenizer = Tokenizer.from_pretrained(models[kind])
        found = []
        for batch in ([0, 1], [2, 3], [4, 6], [7], [8, 9], [10, 11]):
            images = torch.stack([to_tensor(centre_crop_resize(load_image(encoded(n)), 16)) for n in batch])
            found.append(tokenizer.encode(images.flip(-1) if flip else images))
        return torch.cat([code.latent if code.indices is None else code.indices for code in found])

    return expected


def test_lightningdit_reads_latents_labels_and_statistics(coded, rows, tmp_path, expected):
    summary = coded(rows, layout="lightningdit")
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    places = []  # (file, place in it), as its data set makes them
    for path in files:
        with safe_open(path, framework="pt", device="cpu") as file:
            places += [(path, n) for n in range(file.get_slice("labels").get_shape()[0])]
    assert len(places) == 11
    for key, flip in (("latents", False), ("latents_flip", True)):
        found, labels = [], []
        for path, place in places:
            with safe_open(path, framework="pt", device="cpu") as file:
                found.append(file.get_slice(key)[place : place + 1])
                labels.append(file.get_slice("labels")[place : place + 1].squeeze(0).item())
        assert torch.equal(torch.cat(found), expected(flip=flip))
        assert labels == GOOD
    statistics = torch.load(tmp_path / "out" / "latents_stats.pt")
    assert statistics["mean"].shape == statistics["std"].shape == (1, 16, 1, 1)
    assert statistics["std"].flatten().tolist() == pytest.approx(summary.std)
    latents = expected()
    assert torch.allclose(statistics["std"], latents.std(dim=[0, 2, 3], keepdim=True), rtol=1e-4)


def read_as_repa(folder: Path):
    """REPA's data set: sorted files of both folders belong together, labels by the name of the array."""

    def files(below: Path) -> list[str]:
        return sorted(
            path.relative_to(below).as_posix() for path in below.rglob("*") if path.suffix in {".png", ".npy"}
        )

    images, features = files(folder / "images"), files(folder / "vae-sd")
    assert len(images) == len(features)
    labels = dict(json.loads((folder / "vae-sd" / "dataset.json").read_text("utf-8"))["labels"])
    for image, feature in zip(images, features, strict=True):
        pixels = np.array(Image.open(folder / "images" / image))
        yield pixels, np.load(folder / "vae-sd" / feature), np.array(labels[feature]).astype(np.int64)


@pytest.mark.parametrize("kind", ["plain", "kl"])
def test_edm2_and_repa_read_moments_images_and_labels(coded, rows, tmp_path, expected, kind):
    coded(rows, layout="edm2", kind=kind)
    found = list(read_as_repa(tmp_path / "out"))
    mean, std = np.stack([moments for _, moments, _ in found]).reshape(11, 2, 16, 2, 2).transpose(1, 0, 2, 3, 4)
    assert np.array_equal(mean, expected(kind).numpy())
    assert (std > 0).all() == (kind == "kl")
    assert [int(label) for _, _, label in found] == GOOD
    assert np.array_equal(found[0][0], np.asarray(centre_crop_resize(load_image(encoded(0)), 16)))


def test_edm2_has_no_labels_where_the_images_have_none(coded, tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(1))
    coded(tmp_path / "a.png", layout="edm2")
    assert json.loads((tmp_path / "out" / "vae-sd" / "dataset.json").read_text("utf-8")) == {"labels": None}


def test_fast_dit_reads_an_array_for_each_image_and_label(coded, rows, tmp_path, expected):
    coded(rows, layout="npy", flip=True)
    names = sorted(path.name for path in (tmp_path / "out" / "features").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "out" / "labels").iterdir())
    assert np.array_equal(np.concatenate([np.load(tmp_path / "out/features" / n) for n in names]), expected().numpy())
    flipped = np.concatenate([np.load(tmp_path / "out/flipped" / n) for n in names])
    assert np.array_equal(flipped, expected(flip=True).numpy())
    assert np.concatenate([np.load(tmp_path / "out/labels" / n) for n in names]).tolist() == GOOD


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # its reader leaves the last shard open
def test_webdataset_reads_its_shards(coded, rows, tmp_path, expected):
    webdataset = pytest.importorskip("webdataset")
    coded(rows, layout="webdataset", flip=True)
    urls = sorted(str(path) for path in (tmp_path / "out").glob("*.tar"))
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    gc.collect()
    assert np.array_equal(np.stack([sample["latent.npy"] for sample in samples]), expected().numpy())
    assert np.array_equal(np.stack([sample["flip.npy"] for sample in samples]), expected(flip=True).numpy())
    assert [sample["cls"] for sample in samples] == GOOD
    about = samples[0]["json"]
    assert (about["id"], about["height"], about["caption"]) == ("rows.parquet:0", 16, "red 0")


def read_mds(folder: Path):
    """The rules of MosaicML streaming's reader: index, offsets, sizes of columns, then their bytes."""
    for shard in json.loads((folder / "index.json").read_text("utf-8"))["shards"]:
        assert (shard["version"], shard["format"]) == (2, "mds")
        data = (folder / shard["raw_data"]["basename"]).read_bytes()
        assert len(data) == shard["raw_data"]["bytes"]
        assert int(np.frombuffer(data[:4], np.uint32)[0]) == shard["samples"]
        for index in range(shard["samples"]):
            begin, end = np.frombuffer(data[(1 + index) * 4 : (3 + index) * 4], np.uint32)
            yield read_mds_sample(data[begin:end], shard)


def read_mds_sample(data: bytes, shard: dict) -> dict:
    place, sizes, sample = 0, [], {}
    for size in shard["column_sizes"]:
        if size is None:
            size, place = int(np.frombuffer(data[place : place + 4], np.uint32)[0]), place + 4
        sizes.append(size)
    for name, encoding, size in zip(shard["column_names"], shard["column_encodings"], sizes, strict=True):
        value, place = data[place : place + size], place + size
        if encoding.startswith("ndarray:"):
            rank, width = value[0] >> 2, 2 ** (value[0] % 4)
            sides = np.frombuffer(value[1 : 1 + rank * width], f"uint{8 * width}")
            sample[name] = np.frombuffer(value[1 + rank * width :], encoding[8:]).reshape(sides)
        else:
            readers = {"int": lambda v: int(np.frombuffer(v, np.int64)[0]), "json": json.loads, "str": bytes.decode}
            sample[name] = readers[encoding](value)
    return sample


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_mosaicml_streaming_reads_its_shards(coded, rows, tmp_path, expected, dtype):
    coded(rows, layout="mds", dtype=dtype, flip=True)
    samples = list(read_mds(tmp_path / "out"))
    assert np.array_equal(np.stack([sample["latent"] for sample in samples]), expected().numpy().astype(dtype))
    flipped = expected(flip=True).numpy().astype(dtype)
    assert np.array_equal(np.stack([sample["latent_flip"] for sample in samples]), flipped)
    assert [(sample["id"], sample["label"]) for sample in samples] == [(f"rows.parquet:{n}", n) for n in GOOD]
    assert samples[0]["columns"]["caption"] == "red 0"


def test_rar_reads_a_line_of_tokens_for_each_image(coded, rows, tmp_path, expected):
    coded(rows, layout="jsonl", kind="fsq", flip=True)
    lines = (tmp_path / "out" / "tokens.jsonl").read_text("utf-8").splitlines()
    data = [json.loads(line) for line in lines]
    assert [line["class_id"] for line in data] == [n for n in GOOD for _ in range(2)]
    tokens = torch.tensor([line["tokens"] for line in data])
    assert torch.equal(tokens[::2], expected("fsq").flatten(1))
    assert torch.equal(tokens[1::2], expected("fsq", flip=True).flatten(1))


def test_the_label_of_a_folder_is_the_place_of_its_top_folder(coded, tmp_path):
    for name in ("cat/1.png", "cat/2.png", "ant/deep/3.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(int(path.stem)))
    coded(tmp_path / "photos", layout="npy")
    labels = [np.load(path).item() for path in sorted((tmp_path / "out" / "labels").iterdir())]
    assert labels == [0, 1, 1]
