"""Hub data sets, from local files; needs the package datasets."""

import json
import pickle

import pytest

from image_fakes import encoded
from stepladder.data import open_source
from stepladder.errors import DataError, ImageError

pytest.importorskip("datasets", exc_type=ImportError)
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

IMAGES = [encoded(n) for n in range(3)]


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def hub_folder(tmp_path):
    """A folder laid out as a data set of the hub: `make(train={"image": ...}, validation=...)`."""

    def make(**splits):
        for split, columns in splits.items():
            features = {
                name: {"_type": "Image"} if isinstance(values[0], dict) else {"_type": "Value", "dtype": "string"}
                for name, values in columns.items()
            }
            rows = pa.table(columns).replace_schema_metadata(
                {"huggingface": json.dumps({"info": {"features": features}})}
            )
            (tmp_path / "set" / "data").mkdir(parents=True, exist_ok=True)
            pq.write_table(rows, tmp_path / "set" / "data" / f"{split}-00000-of-00001.parquet")
        return str(tmp_path / "set")

    return make


def column(images):
    return [{"bytes": data, "path": "x.png"} for data in images]


def open_hub(name, split=None):
    from stepladder.data.hub import HubImages

    return HubImages(name, split=split)


def test_the_only_split_is_read_as_bytes(hub_folder):
    source = open_hub(hub_folder(train={"image": column(IMAGES), "label": ["a", "b", "c"]}))
    assert [source.read(i) for i in range(len(source))] == IMAGES
    assert source.key(1).endswith("#1")


def test_of_several_splits_one_must_be_named(hub_folder):
    name = hub_folder(train={"image": column(IMAGES)}, validation={"image": column(IMAGES[1:])})
    with pytest.raises(DataError, match=r"has the splits train, validation\. One split is needed"):
        open_hub(name)
    assert len(open_hub(name, "validation")) == 2
    assert len(open_hub(name, "train[:1]")) == 1


def test_a_source_can_be_pickled(hub_folder):
    source = open_hub(hub_folder(train={"image": column(IMAGES)}))
    assert pickle.loads(pickle.dumps(source)).read(2) == IMAGES[2]


def test_a_data_set_without_one_image_column_lists_its_columns(hub_folder):
    with pytest.raises(DataError, match=r"has 0 image columns; its columns are label"):
        open_hub(hub_folder(train={"label": ["a"]}))


def test_an_unknown_split_is_an_error(hub_folder):
    with pytest.raises(DataError, match=r"cannot be loaded: .*Check the name and the connection"):
        open_hub(hub_folder(train={"image": column(IMAGES)}), "test")


def test_an_unknown_data_set_is_an_error_of_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="Hub data set 'owner/none' cannot be loaded") as caught:
        open_source("owner/none")
    assert "\n" not in str(caught.value)


def test_an_empty_row_is_an_image_error(hub_folder):
    source = open_hub(hub_folder(train={"image": [*column(IMAGES[:1]), None]}))
    with pytest.raises(ImageError, match="#1 is empty"):
        source.read(1)
