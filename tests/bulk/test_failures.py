"""What can go wrong on the way: one line, and a run that can go on."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import fsspec
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from bulk_fakes import make_rows, make_tar
from image_fakes import encoded
from stepladder.bulk.layouts import build_layout
from stepladder.bulk.manifest import Manifest
from stepladder.bulk.store import Store
from stepladder.data.pieces import plan_pieces
from stepladder.data.remote import RemoteError
from stepladder.errors import ConfigError, DataError, MissingDependencyError, OutputError


def ids(folder: Path) -> list[str]:
    return [name for path in sorted(folder.glob("latents-*")) for name in pq.read_table(path)["id"].to_pylist()]


def shard_of(first: int, count: int = 3) -> list[tuple[str, bytes]]:
    return [(f"{n}.png", encoded(n)) for n in range(first, first + count)]


def cut(path: Path, left: float) -> bytes:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * left)])
    return whole


LIMITED = (
    "import resource, sys\nfrom stepladder.cli import main\n"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)), resource.RLIM_INFINITY))\n"
    "if __name__ == '__main__': main()"
)
"""A command whose files have at most as many bytes as its first argument says."""


def test_a_disk_that_fills_stops_the_run_with_one_line_and_the_next_goes_on(python, coded, tmp_path, models):
    data = make_rows(tmp_path / "rows.parquet", damaged=None)
    words = f"bulk encode {data} {tmp_path / 'out'} --model {models['plain']} --size 16 --batch 2 --shard 4 --workers 0"
    done = python(LIMITED, 3000, *words.split())
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: Cannot write {tmp_path / 'out'}/00000-000: ")
    assert done.stderr.endswith(
        "File too large. A place that can be written, with space left, is needed. Make room or change the permissions, "
        "then run the same command again: what is done stays done.\n"
    )
    assert done.stderr.count("\n") == 1
    assert not list((tmp_path / "out").glob("latents-*"))
    assert coded(data).images == 12
    assert len(set(ids(tmp_path / "out"))) == 12


def test_a_disk_that_fills_when_all_shards_are_done_is_one_line_too(python, coded, tmp_path, models):
    data = make_rows(tmp_path / "rows.parquet", damaged=None, count=60)
    options = f"--model {models['fsq']} --size 16 --batch 2 --shard 4 --layout jsonl --workers 0"
    done = python(LIMITED, 2500, "bulk", "encode", data, tmp_path / "out", *options.split())
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: Cannot write {tmp_path / 'out'}/tokens: File too large. A place that can be")
    assert done.stderr.count("\n") == 1
    assert coded(data, kind="fsq", layout="jsonl").shards_before == 15
    assert (tmp_path / "out" / "tokens.jsonl").read_text("utf-8").count("\n") == 60


def test_an_output_that_cannot_be_written_is_one_line(coded, rows, tmp_path):
    (tmp_path / "file").touch()
    text = f"Cannot write {tmp_path}/file/out/_bulk: Not a directory. A folder that can be written is needed."
    with pytest.raises(OutputError, match=text):
        coded(rows, "file/out")


def test_a_folder_with_other_files_is_not_written_to(coded, rows, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()
    with pytest.raises(OutputError, match=r"out holds other files already, for example thesis.txt. An empty or new"):
        coded(rows)


def test_two_runs_at_once_are_refused(coded, rows, tmp_path):
    with Manifest(Store(str(tmp_path / "out"))).opened({}), pytest.raises(OutputError, match="Another run is at work"):
        coded(rows)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"kind": "kl"}, "was begun with model '[0-9a-f]{16}', and this run has '[0-9a-f]{16}'"),
        ({"size": 8}, "was begun with --size 16, and this run has 8. An output is of one model, one input and one set"),
        ({"batch": 3}, "was begun with --batch 2, and this run has 3"),
        ({"dtype": "float16"}, "was begun with --dtype 'float32', and this run has 'float16'"),
    ],
)
def test_another_model_or_option_on_the_same_output_is_refused(coded, rows, change, text):
    coded(rows)
    with pytest.raises(ConfigError, match=text):
        coded(rows, **change)


def test_another_input_on_the_same_output_is_refused(coded, rows, tmp_path):
    coded(rows)
    with pytest.raises(ConfigError, match="was begun with sha256 '"):
        coded(make_rows(tmp_path / "others.parquet"))


@pytest.mark.parametrize("left", [0.3, 0.6])
def test_a_truncated_tar_shard_fails_alone_and_is_made_once_it_is_mended(coded, tmp_path, left, caplog):
    first, _ = (make_tar(tmp_path / f"{n}.tar", shard_of(3 * n)) for n in range(2))
    whole = cut(first, left)
    summary = coded(tmp_path / "*.tar")
    assert (summary.images, summary.shards) == (3, 1)
    (failed,) = summary.shards_failed
    assert failed["shard"] == "00000-000"
    assert failed["error"].startswith(f"Shard {first} is damaged or truncated after")
    assert caplog.messages == [f"Shard 00000-000 failed: {failed['error']}"]
    assert ids(tmp_path / "out") == ["1/3", "1/4", "1/5"]
    first.write_bytes(whole)
    assert coded(tmp_path / "*.tar").shards_before == 1
    assert ids(tmp_path / "out") == ["0/0", "0/1", "0/2", "1/3", "1/4", "1/5"]


def test_a_truncated_parquet_file_fails_alone_and_is_made_once_it_is_mended(coded, tmp_path):
    _, second = (make_rows(tmp_path / f"{n}.parquet", damaged=None) for n in range(2))
    whole = cut(second, 0.5)
    summary = coded(tmp_path / "*.parquet")
    assert summary.images == 12
    assert summary.shards_failed[0]["error"].startswith(f"Parquet file {second} cannot be read: ")
    second.write_bytes(whole)
    assert coded(tmp_path / "*.parquet").images == 24
    assert len(set(ids(tmp_path / "out"))) == 24


def test_an_id_that_occurs_twice_goes_to_the_errors_table(coded, tmp_path):
    path = make_tar(tmp_path / "twice.tar", [("a.png", encoded(1)), ("b.png", encoded(2)), ("a.png", encoded(3))])
    summary = coded(path)
    assert (summary.images, summary.failed) == (2, 1)
    rows = pq.read_table(tmp_path / "out" / "latents-00000-000.parquet").to_pylist()
    assert [row["error"] for row in rows] == [None, None, "Id a occurs twice in its shard. Ids are unique. Rename one."]


class Flaky(MemoryFileSystem):
    """A file system whose files break off while they are read, `left` times."""

    protocol = "flaky"
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]
    left = 0
    ending = ".tar"
    reads = 1
    error: Exception = ConnectionResetError(104, "Connection reset by peer")

    def _open(self, path, mode="rb", **options):
        file = super()._open(path, mode, **options)
        vars(file).pop("read", None)  # the file system hands out one object again and again
        if mode == "rb" and path.endswith(Flaky.ending) and Flaky.left:
            Flaky.left -= 1
            read, given = file.read, 0

            def breaking(size=-1):
                nonlocal given
                given += 1
                if given > Flaky.reads:
                    raise Flaky.error
                return read(1000)

            file.read = breaking
        return file


@pytest.fixture
def flaky():
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    Flaky.store.clear()
    return Flaky


def put(path: Path, url: str) -> str:
    with fsspec.open(url, "wb") as file:
        file.write(path.read_bytes())
    return url


@pytest.mark.untyped  # remote files are no BinaryIO by their type
@pytest.mark.parametrize("breaks", [2, 3])
def test_a_remote_shard_that_breaks_off_is_tried_three_times(coded, flaky, tmp_path, breaks):
    url = put(make_tar(tmp_path / "a.tar", shard_of(0)), "flaky://data/a.tar")
    flaky.left = breaks
    summary = coded(url)
    assert flaky.left == 0
    if breaks == 3:
        (failed,) = summary.shards_failed
        text = (
            f"Shard {url} broke off after 0 samples: [Errno 104] Connection reset by peer. Run the same command again."
        )
        assert failed["error"] == text
    else:
        assert summary.images == 3
    assert coded(url).images == 3


class PayloadError(Exception):
    """As that of a library of HTTP: no OSError."""


@pytest.mark.untyped
@pytest.mark.parametrize("error", [ConnectionResetError(104, "Reset by peer"), PayloadError("Reset by peer")])
def test_a_remote_parquet_file_that_breaks_off_is_tried_again_too(coded, flaky, monkeypatch, tmp_path, error):
    url = put(make_rows(tmp_path / "a.parquet", damaged=None), "flaky://data/a.parquet")
    monkeypatch.setattr(flaky, "error", error)
    monkeypatch.setattr(flaky, "ending", ".parquet")
    monkeypatch.setattr(flaky, "reads", 0)
    flaky.left = 1
    text = r"Parquet file flaky://data/a.parquet broke off: .*Reset by peer. A connection and a complete file are"
    with pytest.raises(RemoteError, match=text):
        coded(url)
    (piece, *_) = plan_pieces(url, images=4).pieces
    flaky.left = 1
    with pytest.raises(RemoteError, match=text):
        list(piece.rows())
    assert coded(url).images == 12


def test_an_output_can_be_remote(coded, rows, tmp_path):
    coded(rows)
    coded(rows, "memory://bucket/out")
    there = fsspec.filesystem("memory")
    for path in (tmp_path / "out").glob("latents-*"):
        assert there.cat_file(f"/bucket/out/{path.name}") == path.read_bytes()
    assert coded(rows, "memory://bucket/out").shards_before == 3


def test_a_remote_place_that_does_not_exist_is_one_line(coded):
    with pytest.raises(DataError, match=r"No data at 'memory://nowhere'. A remote file, folder or pattern that exists"):
        coded("memory://nowhere")
    with pytest.raises(DataError, match=r"'odd://x' cannot be opened: .* Accepted: s3://, gs://, hf://, https://"):
        coded("odd://x")


def test_a_protocol_whose_package_is_missing_is_one_line(coded):
    if find_spec("s3fs"):
        pytest.skip("s3fs is installed")
    with pytest.raises(
        MissingDependencyError, match="'s3://bucket/x' needs a package that is not installed: Install s3"
    ):
        coded("s3://bucket/x")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        pytest.param(
            {"layout": "zip"},
            "Layout 'zip' is unknown. Accepted: parquet, lightningdit, edm2, npy, webdataset, mds, jsonl",
            marks=pytest.mark.untyped,
        ),
        ({"dtype": "int8"}, "Type 'int8' is unknown. Accepted: float32, float16, bfloat16. Pass one as --dtype."),
        ({"layout": "npy", "dtype": "bfloat16"}, "Layout 'npy' holds numpy arrays, which know no bfloat16."),
        ({"layout": "lightningdit", "moments": True}, "--moments does not fit layout 'lightningdit', whose trainers"),
        ({"layout": "edm2", "flip": True}, "--flip does not fit layout 'edm2', which has no place for mirrored images"),
        ({"batch": 0}, "--batch is 0. It must be at least 1. Pass a larger one."),
        ({"moments": True}, "--moments does not fit model '.*', whose bottleneck 'plain' has no posterior."),
        ({"layout": "jsonl"}, "Layout 'jsonl' holds code indices, and the latent of model '.*' is continuous."),
        ({"layout": "edm2", "size": None}, "Layout 'edm2' holds latents of one shape, and --keep-size gives many."),
    ],
)
def test_options_that_do_not_fit_are_refused_before_work_starts(coded, rows, tmp_path, options, text):
    with pytest.raises(ConfigError, match=text):
        coded(rows, **options)
    assert not (tmp_path / "out").exists()


def test_labels_that_are_no_numbers_and_columns_that_are_missing_are_one_line(coded, rows):
    text = "Label 'red 0' of image rows.parquet:0 is no whole number, which layout 'npy' needs. Pass another column"
    assert coded(rows, layout="npy", label="caption").shards_failed[0]["error"].startswith(text)
    text = "Image rows.parquet:0 has no column 'class'. Its columns: label, caption. Pass one as --label."
    assert coded(rows, "other", label="class").shards_failed[0]["error"] == text


def test_a_missing_webdataset_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(MissingDependencyError, match=r"Run pip install 'stepladder\[bulk\]'"):
        build_layout("webdataset")
