import pickle

import pytest

from image_fakes import encoded
from stepladder.data import open_source
from stepladder.errors import DataError, ImageError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

IMAGES = [encoded(n) for n in range(7)]


def as_structs(images):
    return [None if data is None else {"bytes": data, "path": None} for data in images]


def write(path, columns, row_group_size=3):
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


@pytest.mark.parametrize("kind", ["struct", "binary", "large binary"])
def test_all_rows_are_read_in_any_order(tmp_path, kind):
    column = {
        "struct": pa.array(as_structs(IMAGES)),
        "binary": pa.array(IMAGES),
        "large binary": pa.array(IMAGES, pa.large_binary()),
    }[kind]
    source = open_source(write(tmp_path / "p.parquet", {"label": list(range(7)), "image": column}))
    assert len(source) == 7
    for index in (6, 0, 3, 2, 5, 1, 4, 0):
        assert source.read(index) == IMAGES[index]
        assert source.key(index) == f"p.parquet:{index}"


def test_several_files_are_one_source(tmp_path):
    write(tmp_path / "p-0.parquet", {"image": as_structs(IMAGES[:4])})
    write(tmp_path / "p-1.parquet", {"image": as_structs(IMAGES[4:])})
    source = open_source(f"{tmp_path}/p-*.parquet")
    assert [source.read(i) for i in range(len(source))] == IMAGES
    assert source.key(4) == "p-1.parquet:0"


def test_a_used_source_is_pickled_without_its_cache(tmp_path):
    source = open_source(write(tmp_path / "p.parquet", {"image": as_structs([encoded(1, width=200, height=200)] * 3)}))
    source.read(0)
    state = pickle.dumps(source)
    assert len(state) < 2000
    assert pickle.loads(state).read(2) == source.read(2)


def test_row_groups_beyond_the_cache_are_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr("stepladder.data.parquet.CACHE_BYTES", 4 * len(IMAGES[0]))
    source = open_source(write(tmp_path / "p.parquet", {"image": as_structs(IMAGES)}))
    assert [source.read(i) for i in range(7)] == IMAGES
    assert len(source._rows._cache) == 1


def test_an_image_column_of_another_name_is_found(tmp_path):
    columns = {"id": ["a"], "picture": as_structs(IMAGES[:1]), "thumbnail": [b"x"]}
    assert open_source(write(tmp_path / "p.parquet", columns)).read(0) == IMAGES[0]


def test_the_usual_name_wins_among_several_image_columns(tmp_path):
    columns = {"mask": as_structs(IMAGES[:1]), "image": as_structs(IMAGES[1:2])}
    assert open_source(write(tmp_path / "p.parquet", columns)).read(0) == IMAGES[1]


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({"id": ["a"], "n": [1]}, r"has no image columns; its columns are id \(string\), n \(int64\)"),
        ({"one": [b"x"], "two": [b"y"]}, r"has several image columns; its columns are one \(binary\), two \(binary\)"),
    ],
)
def test_a_file_without_one_image_column_lists_its_columns(tmp_path, columns, text):
    with pytest.raises(DataError, match=text):
        open_source(write(tmp_path / "p.parquet", columns))


def test_an_empty_row_is_an_image_error(tmp_path):
    source = open_source(write(tmp_path / "p.parquet", {"image": as_structs([IMAGES[0], None, b""])}))
    for index in (1, 2):
        with pytest.raises(ImageError, match=rf"Image p\.parquet:{index} is empty"):
            source.read(index)


def test_a_damaged_file_is_an_error(tmp_path):
    path = write(tmp_path / "p.parquet", {"image": as_structs(IMAGES)})
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"p\.parquet cannot be read: .* A complete Parquet file is needed"):
        open_source(path)


def test_a_file_that_vanishes_is_an_image_error(tmp_path):
    path = write(tmp_path / "p.parquet", {"image": as_structs(IMAGES)})
    source = open_source(path)
    path.unlink()
    with pytest.raises(ImageError, match=r"Image p\.parquet:5 cannot be read"):
        source.read(5)


def test_a_file_without_rows_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"No images in .*p\.parquet"):
        open_source(write(tmp_path / "p.parquet", {"image": pa.array([], pa.binary())}))
