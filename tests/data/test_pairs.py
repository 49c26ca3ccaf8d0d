import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from stepladder.data import CodedImages, CropConfig, TrainingCrops, open_pairs, read_pair, training_loader
from stepladder.data.npy import from_npy, to_npy
from stepladder.data.pairs import evaluation_pairs
from stepladder.errors import DataError, ImageError
from stepladder.images import to_png

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

STRIDE = 4


def pair(index: int, height: int = 24, width: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """An image whose cells are flat, and a latent that says for each cell its row, its column, and the image."""
    rows, columns = -(-height // STRIDE), -(-width // STRIDE)
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    latent = torch.stack([y, x, torch.full_like(y, index)]).float()
    cells = torch.stack([y * 10, x * 10, torch.full_like(y, index)]) / 127.5 - 1
    image = cells.repeat_interleave(STRIDE, 1).repeat_interleave(STRIDE, 2)[:, :height, :width]
    return image, latent


def parquet(path: Path, pairs, latents=None) -> Path:
    values = [to_npy(latent.numpy()) for _, latent in pairs] if latents is None else latents
    rows = [{"bytes": to_png(image), "path": None} for image, _ in pairs]
    pq.write_table(pa.table({"image": rows, "latent": values}), path, row_group_size=2)
    return path


def shard(path: Path, pairs) -> Path:
    with tarfile.open(path, "w") as archive:
        for index, (image, latent) in enumerate(pairs):
            for name, data in ((f"{index}.png", to_png(image)), (f"{index}.npy", to_npy(latent.numpy()))):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return path


PAIRS = [pair(index) for index in range(5)]


@pytest.fixture(params=["parquet", "lists", "tar"])
def data(request, tmp_path) -> Path:
    if request.param == "tar":
        return shard(tmp_path / "pairs.tar", PAIRS)
    lists = [latent.tolist() for _, latent in PAIRS] if request.param == "lists" else None
    return parquet(tmp_path / "pairs.parquet", PAIRS, lists)


def test_images_and_latents_come_back_from_every_kind_of_file(data):
    source = pickle.loads(pickle.dumps(open_pairs(str(data))))
    assert len(source) == 5 and source.fingerprints == {}
    for index, (image, latent) in enumerate(PAIRS):
        found = read_pair(source, index, STRIDE)
        torch.testing.assert_close(found.image, image)
        torch.testing.assert_close(found.latent, latent)


def test_a_crop_shows_the_same_part_of_the_image_and_of_the_latent(data):
    loader = training_loader(open_pairs(str(data)), crop=CropConfig(size=16), batch_size=8, seed=0, stride=STRIDE)
    places = set()
    for _ in range(4):
        batch = next(loader)
        assert isinstance(batch, CodedImages) and len(batch) == 8
        assert batch.images.shape == (8, 3, 16, 16) and batch.latents.shape == (8, 3, 4, 4)
        corners = torch.stack([batch.latents[:, 0] * 10, batch.latents[:, 1] * 10, batch.latents[:, 2]], 1)
        torch.testing.assert_close(batch.images[:, :, ::STRIDE, ::STRIDE], corners / 127.5 - 1)
        places |= {tuple(place) for place in batch.latents[:, :2, 0, 0].tolist()}
    assert len(places) > 5


def test_worker_processes_change_no_batch(data):
    options = {"crop": CropConfig(size=16), "batch_size": 3, "seed": 0, "stride": STRIDE}
    alone = training_loader(open_pairs(str(data)), **options)
    helped = training_loader(open_pairs(str(data)), num_workers=2, **options)
    for _ in range(3):
        one, other = next(alone), next(helped)
        assert torch.equal(one.images, other.images) and torch.equal(one.latents, other.latents)


def test_every_image_is_drawn_once_an_epoch(data):
    crops = TrainingCrops(open_pairs(str(data)), crop=CropConfig(size=16), batch_size=5, seed=3, stride=STRIDE)
    assert sorted(crops[0].images.latents[:, 2, 0, 0].tolist()) == [0, 1, 2, 3, 4]
    torch.testing.assert_close(crops[7].images.latents, crops[7].images.latents)


def test_validation_pairs_are_windows_of_the_middle(data):
    (first, second) = evaluation_pairs(open_pairs(str(data)), side=16, stride=STRIDE, limit=2)
    assert first.latent[:2, 0, 0].tolist() == [1, 2] and second.latent[2, 0, 0] == 1
    torch.testing.assert_close(first.image, PAIRS[0][0][:, 4:20, 8:24])


def test_cells_that_an_image_fills_in_part_are_left_out(tmp_path):
    source = open_pairs(str(parquet(tmp_path / "a.parquet", [pair(0, 18, 19)])))
    crops = TrainingCrops(source, crop=CropConfig(size=16), batch_size=4, seed=0, stride=STRIDE)
    assert crops[0].images.latents[:, :2, 0, 0].tolist() == [[0, 0]] * 4


def unreadable(latent: np.ndarray | list, tmp_path, stride: int = STRIDE) -> str:
    value = latent if isinstance(latent, list | bytes) else to_npy(latent)
    source = open_pairs(str(parquet(tmp_path / "bad.parquet", PAIRS[:1], [value])))
    with pytest.raises(ImageError) as error:
        read_pair(source, 0, stride)
    return str(error.value)


def test_latents_that_do_not_fit_are_refused_with_what_is_wrong(tmp_path):
    good = PAIRS[0][1].numpy()
    assert "6 x 8 cells for an image of 24 x 32. A side ratio of 8 makes 3 x 4" in unreadable(good, tmp_path, stride=8)
    assert "holds NaN or infinity" in unreadable(np.full_like(good, np.nan), tmp_path)
    assert "shape (6, 8) and type float32. Accepted: floats (c, h, w)" in unreadable(good[0], tmp_path)
    assert "type int64" in unreadable(good.astype(np.int64), tmp_path)
    assert "is no array" in unreadable(b"no array", tmp_path)
    assert "is no array" in unreadable([[1.0], [2.0, 3.0]], tmp_path)
    assert "is no array" in unreadable(to_npy(np.array([1.0]))[:-4], tmp_path)


def test_pickled_objects_are_not_loaded():
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ImageError, match=r"is no array: Object arrays cannot be loaded\. Accepted"):
        from_npy(buffer.getvalue(), "bad")
    with pytest.raises(ImageError, match=r"is no array: it does not begin as a \.npy file\. Accepted"):
        from_npy(b"hello", "bad")


def test_images_smaller_than_the_crop_are_passed_over_and_none_left_is_an_error(tmp_path):
    mixed = open_pairs(str(parquet(tmp_path / "a.parquet", [pair(0, 12, 32), pair(1)])))
    crops = TrainingCrops(mixed, crop=CropConfig(size=16), batch_size=2, seed=0, stride=STRIDE)
    assert crops[0].images.latents[:, 2, 0, 0].tolist() == [1, 1]
    assert "smaller than the crop, 16 x 16" in crops[0].unreadable[0].reason
    small = open_pairs(str(parquet(tmp_path / "b.parquet", [pair(0, 12, 32)])))
    with pytest.raises(DataError, match="smaller than the crop"):
        TrainingCrops(small, crop=CropConfig(size=16), batch_size=2, seed=0, stride=STRIDE)[0]
    with pytest.raises(DataError, match=r"None of the 1 images .* can be used"):
        evaluation_pairs(small, side=16, stride=STRIDE, limit=1)


def test_latents_of_two_encoders_do_not_make_a_batch(tmp_path):
    image, latent = pair(1)
    source = open_pairs(str(parquet(tmp_path / "a.parquet", [PAIRS[0], (image, latent[:2])])))
    with pytest.raises(DataError, match="2 and 3 channels"):
        TrainingCrops(source, crop=CropConfig(size=16), batch_size=2, seed=0, stride=STRIDE)[0]


def test_files_without_latents_are_refused(tmp_path):
    images = [{"bytes": to_png(PAIRS[0][0]), "path": None}]
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"no column 'latent'; its columns are image.*stepladder cache"):
        open_pairs(str(tmp_path / "a.parquet"))
    (tmp_path / "a.png").write_bytes(to_png(PAIRS[0][0]))
    with pytest.raises(DataError, match="image files, which hold no latents"):
        open_pairs(str(tmp_path / "a.png"))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "a.png", arcname="a.png")
    with pytest.raises(DataError, match="No images with latents"):
        open_pairs(str(tmp_path / "a.tar"))
