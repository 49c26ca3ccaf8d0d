"""How a data set is cut, and that reading the pieces gives all of it, in order."""

import fsspec
import pytest

from bulk_fakes import make_rows, make_tar
from image_fakes import encoded
from stepladder.data import tars
from stepladder.data.pieces import plan_pieces
from stepladder.errors import DataError, ImageError


def read(data: object, images: int = 2):
    return [row for piece in plan_pieces(str(data), images=images).pieces for row in piece.rows()]


def sizes(data: object, images: int = 2) -> list[int | None]:
    return [piece.images for piece in plan_pieces(str(data), images=images).pieces]


def test_rows_of_parquet_files_come_with_their_other_columns(tmp_path):
    data = make_rows(tmp_path / "rows.parquet")
    assert sizes(data, 5) == [5, 5, 2]
    rows = read(data, 5)
    assert [row.id for row in rows] == [f"rows.parquet:{n}" for n in range(12)]
    assert rows[7].data == encoded(7)
    assert rows[7].columns == {"label": 7, "caption": "red 7"}


def test_samples_of_tar_shards_come_with_their_labels_and_texts(tmp_path):
    members = []
    for n in range(5):
        texts = [(f"a/{n}.cls", b"%d" % n), (f"a/{n}.txt", b"red")]
        members += [(f"a/{n}.png", encoded(n)), (f"a/{n}.seg.png", b"mask"), *texts]
    data = make_tar(tmp_path / "shard.tar", members)
    assert sizes(data) == [2, 2, 1]
    rows = read(data)
    assert [(row.id, row.columns) for row in rows] == [(f"a/{n}", {"cls": n, "txt": "red"}) for n in range(5)]
    assert [row.data for row in rows] == [encoded(n) for n in range(5)]


def test_a_sample_without_an_image_is_an_error_of_that_sample(tmp_path):
    rows = read(make_tar(tmp_path / "shard.tar", [("a.txt", b"red"), ("b.png", encoded(1))]))
    assert isinstance(rows[0].data, ImageError)
    assert str(rows[0].data) == "Sample a holds no image. One member must be an image. Mend the shard."
    assert rows[1].data == encoded(1)


def test_ids_name_the_shard_where_there_are_several(tmp_path):
    for n in range(2):
        make_tar(tmp_path / f"{n}.tar", [("a.png", encoded(n))])
    assert [row.id for row in read(tmp_path / "*.tar")] == ["0/a", "1/a"]


def test_each_of_very_many_shards_is_one_piece(tmp_path, monkeypatch):
    data = make_tar(tmp_path / "shard.tar", [(f"{n}.png", encoded(n)) for n in range(5)])
    monkeypatch.setattr(tars, "MOST_WALKED", 0)
    assert sizes(data) == [None]
    assert len(read(data)) == 5


def test_images_of_folders_are_labelled_by_their_top_folders(tmp_path):
    for name in ("b/x.png", "a/deep/y.png", "a/z.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(encoded(1))
    rows = read(tmp_path / "photos")
    assert [(row.id, row.columns) for row in rows] == [
        ("a/deep/y.png", {"label": 0}),
        ("a/z.png", {"label": 0}),
        ("b/x.png", {"label": 1}),
    ]


@pytest.mark.untyped  # remote files are no BinaryIO by their type
@pytest.mark.parametrize("name", ["rows.parquet", "shard.tar", "photos"])
def test_what_is_remote_is_read_as_what_is_here(tmp_path, name):
    make_rows(tmp_path / "rows.parquet")
    make_tar(tmp_path / "shard.tar", [(f"{n}.png", encoded(n)) for n in range(3)])
    (tmp_path / "photos").mkdir()
    for n in range(3):
        (tmp_path / "photos" / f"{n}.png").write_bytes(encoded(n))
    there = fsspec.filesystem("memory")
    there.put(str(tmp_path / name), f"/data/{name}", recursive=True)
    try:
        rows = read(f"memory://data/{name}")
    finally:
        there.rm("/data", recursive=True)
    assert [(row.data, row.columns) for row in rows] == [(row.data, row.columns) for row in read(tmp_path / name)]


def test_rows_of_a_saved_data_set_come_with_their_other_columns(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    images = [{"bytes": encoded(n), "path": None} for n in range(3)]
    rows = {"image": images, "label": [7, 8, 9]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    assert [(row.data, row.columns) for row in read(tmp_path / "saved")] == [
        (encoded(n), {"label": 7 + n}) for n in range(3)
    ]


def test_data_of_two_kinds_is_refused(tmp_path):
    make_rows(tmp_path / "a.parquet")
    make_tar(tmp_path / "a.tar", [("a.png", encoded(1))])
    with pytest.raises(DataError, match=r"is Parquet files and tar shards. Give paths of one kind."):
        read(tmp_path / "a.*")


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"No images in .*Files that end in .jpg, .png, .webp and the like count."):
        read(tmp_path)
