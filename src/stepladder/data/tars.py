"""Tar shards as streams of samples, as WebDataset defines them.

A sample is a run of members with the same name up to the first dot of the base name. One of them is the image; `.cls`
is its label, and `.txt`, `.json` and other text stand beside it. A shard that ends before its end mark is truncated.

Reference: https://github.com/webdataset/webdataset
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from stepladder.data.remote import RemoteError, is_remote, open_file
from stepladder.errors import DataError
from stepladder.images import is_image_name

__all__ = ["TarPiece", "tar_pieces"]

MOST_WALKED = 256
"""With more shards than this, each is one piece: reading all their headers would take long, and there are enough
pieces."""

_BLOCK = 512
_TEXTS = (".txt", ".json", ".cls", ".caption", ".url")
_LONGEST_TEXT = 2**16


@dataclass(frozen=True, slots=True)
class TarPiece:
    """Consecutive samples of a shard."""

    name: str
    path: str
    offset: int = 0
    """Where the header of its first member begins."""
    samples: int | None = None
    """How many; None where only reading tells."""
    to_end: bool = True
    """Whether its last sample is the last of the shard."""

    def read(self) -> Iterator[tuple[str, bytes | None, dict[str, Any]]]:
        """Key, image and other columns of each sample.

        Raises:
            DataError: If the shard is damaged or truncated.
            RemoteError: If a remote shard breaks off.
        """
        found = 0
        try:
            with open_file(self.path) as file:
                file.seek(self.offset)
                stream = _Stream(file)
                for sample in _samples(stream):
                    yield sample
                    found += 1
                    if found == self.samples and not self.to_end:
                        return
                if not stream.ended:
                    raise tarfile.ReadError("it has no end mark")
        except (tarfile.TarError, EOFError) as error:
            raise _damaged(self.path, error, found) from error
        except OSError as error:
            if is_remote(self.path):
                raise RemoteError(
                    f"Shard {self.path} broke off after {found} samples: {error}. Run the same command again."
                ) from error
            raise _damaged(self.path, error, found) from error


def tar_pieces(path: str, index: str, samples: int, *, shards: int) -> list[TarPiece]:
    """Cuts a shard into pieces of at most `samples`; one piece if it is remote, damaged, or one of very many.

    Args:
        path: Of the shard.
        index: What the names of its pieces begin with.
        samples: The most in a piece.
        shards: How many the data set has.
    """
    whole = [TarPiece(f"{index}-000", path)]
    if is_remote(path) or shards > MOST_WALKED:
        return whole
    starts: list[int] = []  # of samples
    try:
        with tarfile.open(path, "r:") as archive:
            last = None
            for member in archive:
                if member.isfile() and (key := _split(member.name)[0]) != last:
                    starts.append(member.offset)
                    last = key
    except (tarfile.TarError, OSError):  # reading its one piece says what is wrong
        return whole
    cut = range(0, len(starts), samples)
    return [
        TarPiece(f"{index}-{part:03d}", path, starts[first], min(samples, len(starts) - first), first == cut[-1])
        for part, first in enumerate(cut)
    ] or whole


class _Stream:
    """A file that remembers whether what it read last was the end mark: blocks of zeros."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._last = b""

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._last = (self._last + data)[-_BLOCK:]
        return data

    @property
    def ended(self) -> bool:
        return len(self._last) == _BLOCK and not any(self._last)


def _samples(stream: _Stream) -> Iterator[tuple[str, bytes | None, dict[str, Any]]]:
    key: str | None = None
    image: bytes | None = None
    columns: dict[str, Any] = {}
    with tarfile.open(fileobj=stream, mode="r|") as archive:  # type: ignore[call-overload]
        for member in archive:
            if not member.isfile() or Path(member.name).name.startswith("."):
                continue
            stem, suffix = _split(member.name)
            if stem != key:
                if key is not None:
                    yield key, image, columns
                key, image, columns = stem, None, {}
            file = archive.extractfile(member)
            assert file is not None, "it is a file"
            if image is None and is_image_name(f"image{suffix}"):
                image = file.read()
            elif suffix.endswith(_TEXTS) and member.size <= _LONGEST_TEXT:
                columns[suffix[1:]] = _value(suffix, file.read())
    if key is not None:
        yield key, image, columns


def _split(name: str) -> tuple[str, str]:
    """`a/b.seg.png` to `a/b` and `.seg.png`."""
    folder, slash, base = name.rpartition("/")
    stem, dot, suffix = base.partition(".")
    return f"{folder}{slash}{stem}", f"{dot}{suffix}".lower()


def _value(suffix: str, data: bytes) -> Any:
    text = data.decode("utf-8", "replace")
    if suffix.endswith(".cls") and text.strip().lstrip("-").isdigit():
        return int(text)
    return text


def _damaged(path: str, error: Exception, found: int) -> DataError:
    return DataError(
        f"Shard {path} is damaged or truncated after {found} samples of this piece ({error}). A complete tar file is "
        "needed. Check it with 'tar tf', and fetch it again."
    )
