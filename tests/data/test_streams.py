"""Batches from streams: every image once in an epoch, in an order that a place fixes, whoever reads it."""

import itertools

import fsspec
import pytest
import torch

from bulk_fakes import make_rows, make_tar
from image_fakes import encoded
from stepladder.data import CropConfig, ImageStream, StreamConfig, stream_pieces
from stepladder.data import lanes as lanes_module
from stepladder.data.remote import RemoteError
from stepladder.errors import ConfigError, DataError

CROP = CropConfig(size=8, min_scale=1.0, max_scale=2.0)


@pytest.fixture
def shards(tmp_path):
    """Six tar shards with the images 0 to 29: five in each."""
    for n in range(6):
        make_tar(tmp_path / f"{n}.tar", [(f"{m}.png", encoded(m)) for m in range(5 * n, 5 * n + 5)])
    return stream_pieces([str(tmp_path / "*.tar")])


def stream(pieces, *, lanes=2, buffer=4, **options):
    options = {"crop": CROP, "batch_size": 3, "seed": 0} | options
    return ImageStream(pieces, StreamConfig(lanes=lanes, buffer=buffer), **options)


def take(batches, count):
    return list(itertools.islice(batches, count))


def reds(batches) -> list[int]:
    """The images of batches by their red channels."""
    return [round((image[0, 0, 0].item() + 1) * 127.5) for batch in batches for image in batch]


def assert_same(one, other):
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("lanes", [1, 2, 3, 6])
def test_an_epoch_has_every_image_once(shards, lanes):
    assert sorted(reds(take(stream(shards, lanes=lanes, batch_size=5), 6))) == list(range(30))


def test_the_next_epoch_has_another_order(shards):
    batches = take(stream(shards), 20)
    first, second = reds(batches[:10]), reds(batches[10:])
    assert sorted(first) == sorted(second)
    assert first != second
    assert first != sorted(first)


@pytest.mark.parametrize("done", [0, 1, 2, 5, 8, 11, 16])
def test_a_stream_goes_on_from_its_state_bit_for_bit(shards, done):
    whole = take(stream(shards), 20)
    first = stream(shards)
    take(first, done)
    rest = stream(shards, start_batch=done)
    rest.go_on(first.state())
    assert_same(take(rest, 20 - done), whole[done:])


@pytest.mark.parametrize("workers", [1, 2])
def test_loader_processes_change_no_batch_and_the_state_is_that_of_what_came_out(shards, workers):
    whole = take(stream(shards, lanes=6), 12)
    parted = stream(shards, lanes=6, num_workers=workers)
    assert_same(take(parted, 5), whole[:5])
    rest = stream(shards, lanes=6, start_batch=5)
    rest.go_on(parted.state())
    assert_same(take(rest, 7), whole[5:])


def test_processes_share_the_images(shards):
    parts = [stream(shards, lanes=2, process_index=n, num_processes=2) for n in range(2)]
    images = [reds(take(part, 5)) for part in parts]
    assert sorted(images[0] + images[1]) == list(range(30))
    assert set(parts[0].state()) == {"0"}
    assert set(parts[1].state()) == {"1"}


def test_rows_of_parquet_files_are_streamed_too(tmp_path):
    for n in range(2):
        make_rows(tmp_path / f"{n}.parquet", damaged=None)
    found = reds(take(stream(stream_pieces([str(tmp_path / "*.parquet")]), lanes=2), 8))
    assert sorted(found) == sorted(2 * list(range(12)))


@pytest.mark.untyped  # remote files are no BinaryIO by their type
@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_remote_stream_is_that_of_the_same_files_here_and_goes_on_from_its_state(tmp_path, kind):
    for n in range(4):
        if kind == "tar":
            path = make_tar(tmp_path / f"{n}.tar", [(f"{m}.png", encoded(m)) for m in range(5 * n, 5 * n + 5)])
        else:
            path = make_rows(tmp_path / f"{n}.parquet", damaged=None)
        with fsspec.open(f"memory://streams-{kind}/{path.name}", "wb") as file:
            file.write(path.read_bytes())
    here = take(stream(stream_pieces([str(tmp_path / f"*.{kind}")])), 12)
    there = stream_pieces([f"memory://streams-{kind}/*.{kind}"])
    first = stream(there)
    assert_same(take(first, 5), here[:5])
    rest = stream(there, start_batch=5)
    rest.go_on(first.state())
    assert_same(take(rest, 7), here[5:])


def test_images_and_shards_that_are_damaged_are_passed_over_and_named_once(shards, tmp_path, caplog):
    make_tar(tmp_path / "0.tar", [("0.png", b"no image"), ("1.png", encoded(1))])
    path = tmp_path / "5.tar"
    path.write_bytes(path.read_bytes()[:3000])
    found = set(reds(take(stream(shards, lanes=1), 20)))
    assert found == {1} | set(range(5, 26))
    assert len(caplog.messages) == 2
    assert any("0/0" in text and "it is no image" in text for text in caplog.messages)
    assert any("5.tar is damaged or truncated" in text for text in caplog.messages)


class Breaking:
    """A shard that breaks off before its second row, so many times."""

    name, images = "00000-000", None

    def __init__(self, piece, times):
        self.piece, self.left = piece, times

    def rows(self):
        for place, row in enumerate(self.piece.rows()):
            if place == 1 and self.left:
                self.left -= 1
                raise RemoteError("Remote file breaks off.")
            yield row


def test_a_remote_shard_that_breaks_off_is_opened_again(shards, monkeypatch):
    monkeypatch.setattr(lanes_module.time, "sleep", lambda _: None)
    whole = take(stream(shards[:1], lanes=1), 3)
    assert_same(take(stream([Breaking(shards[0], 2)], lanes=1), 3), whole)
    with pytest.raises(RemoteError, match=r"Remote file breaks off."):
        take(stream([Breaking(shards[0], 3)], lanes=1), 3)


def test_lanes_that_fit_neither_processes_nor_shards_are_refused(shards):
    with pytest.raises(ConfigError, match=r"data.stream.lanes is 4, which 3 processes cannot share. .* Set it to 3."):
        stream(shards, lanes=4, num_processes=3)
    with pytest.raises(ConfigError, match=r"data.stream.lanes is 8, and the data has 6 shards. .* Set it to 6 or less"):
        stream(shards, lanes=8)
    with pytest.raises(ConfigError, match=r"data.stream.buffer is 0. It must be 1 to 1,000,000."):
        StreamConfig(buffer=0)


def test_shards_without_a_readable_image_end_the_run(tmp_path):
    path = make_tar(tmp_path / "a.tar", [("a.txt", b"red")])
    with pytest.raises(DataError, match=r"images of one batch cannot be read; the last is a: Sample a holds no image"):
        take(stream(stream_pieces([str(path)]), lanes=1), 1)
    path.write_bytes(b"x" * 1024)
    with pytest.raises(DataError, match=r"The shards of the stream hold no images that can be read. At least one"):
        take(stream(stream_pieces([str(path)]), lanes=1), 1)
