import pickle
import re

import pytest

from image_fakes import encoded
from stepladder.data import open_source
from stepladder.errors import DataError, ImageError, MissingDependencyError


def contents(source):
    return {source.key(i): source.read(i) for i in range(len(source))}


def test_a_folder_is_searched_recursively_and_sorted(make_folder):
    files = {"b.png": encoded(1), "a/c.JPG": encoded(2), "a/b/d.webp": encoded(3)}
    others = {"readme.txt": b"x", "a/labels.json": b"{}", "._b.png": b"x", ".cache/e.png": b"x"}
    source = open_source(make_folder(files | others))
    assert [source.key(i) for i in range(len(source))] == ["a/b/d.webp", "a/c.JPG", "b.png"]
    assert contents(source) == files


def test_a_folder_that_links_to_itself_is_read_once(make_folder):
    folder = make_folder({"a.png": encoded(1)})
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    assert len(open_source(folder)) == 1


def test_a_list_of_folders_and_files_is_one_source(make_folder):
    one, two = make_folder({"a.png": encoded(1)}, "one"), make_folder({"a.png": encoded(2)}, "two")
    source = open_source([one, two / "a.png", two])
    assert [source.key(i) for i in range(3)] == ["one/a.png", "a.png", "two/a.png"]


def test_a_tar_gives_its_images_and_passes_over_the_rest(make_tar):
    images = {"x/1.jpg": encoded(1), "x/2.png": encoded(2)}
    path = make_tar("s.tar", {"x/1.cls": b"3", **images, "x/2.json": b"{}", "x/2.txt": b"t", "._2.png": b"x"})
    assert contents(open_source(path)) == images


def test_a_wildcard_a_range_and_a_list_name_the_same_shards(make_tar, tmp_path):
    paths = [make_tar(f"s-{n:02d}.tar", {f"{n}.png": encoded(n)}) for n in (8, 9, 10)]
    expected = {f"{n}.png": encoded(n) for n in (8, 9, 10)}
    for data in (f"{tmp_path}/s-*.tar", f"{tmp_path}/s-{{08..10}}.tar", paths, [str(path) for path in paths]):
        assert contents(open_source(data)) == expected


def test_a_missing_shard_of_a_range_is_an_error(make_tar, tmp_path):
    make_tar("s-0.tar", {"0.png": encoded(0)})
    with pytest.raises(DataError, match=r"No data at '.*s-1\.tar'"):
        open_source(f"{tmp_path}/s-{{0..1}}.tar")


def test_a_name_with_brackets_is_a_path_before_it_is_a_pattern(make_folder):
    folder = make_folder({"a.png": encoded(1)}, "photos[1]")
    assert len(open_source(folder)) == 1


def test_sources_can_be_pickled_after_use(make_folder, make_tar):
    for data in (make_folder({"a.png": encoded(1)}), make_tar("s.tar", {"a.png": encoded(1)})):
        source = open_source(data)
        source.read(0)
        assert contents(pickle.loads(pickle.dumps(source))) == {"a.png": encoded(1)}


def test_a_file_that_vanishes_is_an_image_error(make_folder):
    source = open_source(make_folder({"a.png": encoded(1), "b.png": encoded(2)}))
    (make_folder({}) / "a.png").unlink()
    with pytest.raises(ImageError, match=r"Image a\.png cannot be read from .*: No such file"):
        source.read(0)
    assert source.read(1) == encoded(2)


def test_a_shard_cut_short_after_opening_is_an_image_error(make_tar):
    path = make_tar("s.tar", {"a.png": encoded(1)})
    source = open_source(path)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(ImageError, match=r"Image a\.png has 88 of its \d+ bytes"):
        source.read(0)


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz"])
def test_a_compressed_tar_is_refused(make_tar, compression):
    path = make_tar(f"s.tar.{compression}", {"a.png": encoded(1)}, f"w:{compression}")
    with pytest.raises(DataError, match=r"is compressed with \w+\. .* plain tar files\. Decompress it"):
        open_source(path)


@pytest.mark.parametrize("content", [b"", b"not a tar" * 100])
def test_a_file_that_is_no_tar_is_refused(tmp_path, content):
    (tmp_path / "s.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"Shard .*s\.tar cannot be read: .* A complete tar file is needed"):
        open_source(tmp_path / "s.tar")


def test_a_truncated_tar_is_refused(make_tar):
    path = make_tar("s.tar", {"a.png": encoded(1), "b.png": encoded(2, width=90)})
    path.write_bytes(path.read_bytes()[:4096])
    with pytest.raises(DataError, match=r"cannot be read: unexpected end of data"):
        open_source(path)


def test_data_that_is_not_there_is_an_error(tmp_path):
    for data in (tmp_path / "none", f"{tmp_path}/*.tar", "missing.tar", [], "https://host.example/a.tar"):
        with pytest.raises(DataError, match=r"Data is a folder of images, \.tar shards"):
            open_source(data)


def test_a_folder_without_images_says_what_it_holds(make_folder, make_tar, tmp_path):
    with pytest.raises(DataError, match=r"No images in .*\. Files that end in \.jpg"):
        open_source(make_folder({"readme.txt": b"x"}))
    make_tar("s.tar", {"a.png": encoded(1)})
    with pytest.raises(DataError, match=re.escape(f"It holds tar shards: give them as '{tmp_path}/*.tar'")):
        open_source(tmp_path)


def parquet_folder(folder, *names):
    """A downloaded data set: one image in each file."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"image": [{"bytes": encoded(number), "path": "x.png"}]}), folder / name)
    return folder


def test_a_downloaded_data_set_is_read_from_its_folder(tmp_path):
    names = ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]
    folder = parquet_folder(tmp_path / "set", *names, ".cache/old.parquet")
    (folder / "README.md").write_text("a card")
    source = open_source(folder)
    assert [source.read(index) for index in range(len(source))] == [encoded(0), encoded(1)]
    assert source.name == str(folder)


def test_of_several_splits_in_a_folder_one_is_needed(tmp_path):
    folder = parquet_folder(tmp_path, "data/test-00000-of-00001.parquet", "data/train-00000-of-00001.parquet")
    with pytest.raises(DataError) as caught:
        open_source(folder)
    assert str(caught.value) == (
        f"Folder {folder} holds the splits test, train. One split is needed. Write '{folder}/data/test-*.parquet'."
    )
    assert len(open_source(f"{folder}/data/test-*.parquet")) == 1


def test_images_in_a_folder_go_before_parquet_files(tmp_path, make_folder):
    folder = parquet_folder(make_folder({"a.png": encoded(5)}), "rows.parquet")
    assert contents(open_source(folder)) == {"a.png": encoded(5)}


def saved(folder, **splits):
    """What `save_to_disk` writes: a data set, or one of several splits."""
    datasets = pytest.importorskip("datasets", exc_type=ImportError)
    made = {
        split: datasets.Dataset.from_dict(
            {"image": [{"bytes": encoded(number), "path": None} for number in numbers]},
            features=datasets.Features({"image": datasets.Image()}),
        )
        for split, numbers in splits.items()
    }
    (made["alone"] if "alone" in made else datasets.DatasetDict(made)).save_to_disk(str(folder))
    return folder


def test_a_saved_data_set_is_read_from_its_folder(tmp_path):
    source = open_source(saved(tmp_path / "set", alone=[1, 2, 3]))
    assert [source.read(index) for index in range(3)] == [encoded(number) for number in (1, 2, 3)]
    assert pickle.loads(pickle.dumps(source)).read(2) == encoded(3)
    assert len(open_source(saved(tmp_path / "dict", train=[4]))) == 1


def test_of_several_saved_splits_one_is_needed(tmp_path):
    folder = saved(tmp_path / "set", train=[1], test=[2, 3])
    with pytest.raises(DataError, match=rf"holds the splits train, test\. One split is needed\. .*'{folder}/train'\.$"):
        open_source(folder)
    assert len(open_source(folder / "test")) == 2


def test_a_damaged_saved_data_set_is_an_error(tmp_path):
    folder = saved(tmp_path / "set", alone=[1])
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(DataError, match=r"cannot be loaded: .* What save_to_disk wrote is needed"):
        open_source(folder)


def test_a_tar_without_images_is_an_error(make_tar):
    with pytest.raises(DataError, match=r"No images in .*s\.tar"):
        open_source(make_tar("s.tar", {"a.txt": b"x"}))


def test_two_kinds_of_data_at_once_are_an_error(make_folder, make_tar):
    data = [make_folder({"a.png": encoded(1)}), make_tar("s.tar", {"a.png": encoded(1)})]
    with pytest.raises(DataError, match="The data names image files and tar shards"):
        open_source(data)


def test_a_file_of_unknown_kind_is_an_error(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"notes\.txt' is of no known kind"):
        open_source(tmp_path / "notes.txt")


def test_a_path_comes_before_a_hub_id_of_the_same_name(make_folder, tmp_path, monkeypatch):
    make_folder({"a.png": encoded(1)}, "owner/name")
    monkeypatch.chdir(tmp_path)
    assert len(open_source("owner/name")) == 1


def test_a_hub_id_without_datasets_names_the_package(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingDependencyError, match=r"No file or folder 'owner/name' exists.*'datasets'"):
        open_source("owner/name:train")
