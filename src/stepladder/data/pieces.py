"""Data as pieces: parts of a data set that are read from front to back, each by one worker, locally or remotely.

    folder, image files     N files to a piece
    *.tar                   N samples to a piece; remote shards, and those of large sets, are a piece each
    *.parquet               N rows to a piece
    hub data sets           N rows to a piece

Random access (`stepladder.data.source`) suits data on a local disk. Pieces suit data of any size: planning reads only
listings, footers of Parquet files and the headers of a few tar files, and each piece is one stream. A piece is named by
its file and its position there, so a repaired file does not change the names of others.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from stepladder.data.files import read_bytes
from stepladder.data.remote import RemoteError, is_remote, list_files, open_file
from stepladder.data.source import ImageSource, expand, hub_id, is_saved, kind_of, open_source, parquet_files
from stepladder.data.tars import TarPiece, tar_pieces
from stepladder.errors import DataError, ImageError
from stepladder.images import images_below, is_image_name

__all__ = ["Piece", "Pieces", "Row", "plan_pieces"]

_LOOKED_INTO = 16
"""Files that are looked into at a time when a data set is cut."""


@dataclass(frozen=True, slots=True)
class Row:
    """One encoded image of a data set, and its other columns."""

    id: str
    """Unique name of the image in the data set."""
    data: bytes | ImageError
    """The encoded image, or the error of reading it."""
    columns: dict[str, Any]
    """The other columns of its row."""


class Piece(Protocol):
    """A part of a data set. Pieces hold no open files and can be pickled."""

    @property
    def name(self) -> str:
        """`00012-003`: the file in the data set, and the place in the file."""
        ...

    @property
    def images(self) -> int | None:
        """Number of images; None if unknown without reading."""
        ...

    def rows(self) -> Iterator[Row]:
        """Reads it from front to back. Raises `DataError` where it is damaged, `RemoteError` where it breaks off."""
        ...


@dataclass(frozen=True, slots=True)
class Pieces:
    """A data set, cut."""

    name: str
    """Its name in messages."""
    files: tuple[str, ...]
    """Its files; another list is another data set."""
    pieces: tuple[Piece, ...]


def plan_pieces(data: str, *, images: int) -> Pieces:
    """Cuts a data set.

    Args:
        data: A path, a pattern, a remote URL (with `://`), or a hub id.
        images: At most this many in a piece, where that is known beforehand.

    Raises:
        DataError: If nothing is there, or it holds no images.
    """
    if not is_remote(data) and (hub_id(data) or is_saved(Path(data).expanduser())):
        return _of_source(data, images)
    if is_remote(data):
        files = list_files(data)
        files = _of_one_kind(files)
        kind = kind_of(Path(files[0])) if files else "image files"
    else:
        paths = list(dict.fromkeys(inner for path in expand(data) for inner in parquet_files(path) or [path]))
        kinds = {kind_of(path) for path in paths}
        if len(kinds) != 1:
            raise DataError(f"The data '{data}' is {' and '.join(sorted(kinds))}. Give paths of one kind.")
        kind = kinds.pop()
        files = sorted({str(file) for path in paths for file in _files_at(path)})
    if not files:
        raise DataError(f"No images in {data}. Files that end in .jpg, .png, .webp and the like count. Check the path.")
    names = _short_names(files)
    match kind:
        case "tar shards":
            many = len(files)
            cut = _of_each(files, names, lambda i, file, name: _tar(i, file, name, images, many))
        case "Parquet files":
            cut = _of_each(files, names, lambda i, file, name: _parquet(i, file, name, images))
        case _:
            cut = _folder(files, names, images)
    return Pieces(data, tuple(names), tuple(cut))


@dataclass(frozen=True, slots=True)
class _FilePiece:
    """Image files."""

    name: str
    files: tuple[tuple[str, str, int | None], ...]
    """Path, id and label of each."""

    @property
    def images(self) -> int:
        return len(self.files)

    def rows(self) -> Iterator[Row]:
        for path, name, label in self.files:
            data: bytes | ImageError
            try:
                data = _read_file(path, name)
            except ImageError as error:
                data = error
            yield Row(name, data, {} if label is None else {"label": label})


@dataclass(frozen=True, slots=True)
class _ParquetPiece:
    """Rows of a Parquet file."""

    name: str
    path: str
    shown: str
    first: int
    images: int | None

    def rows(self) -> Iterator[Row]:
        from stepladder.data.arrow import rows_of

        for place, data, columns in rows_of(self.path, self.first, self.images):
            name = f"{self.shown}:{place}"
            yield Row(name, data or ImageError(f"Image {name} is empty. A row must hold an image. Fill it."), columns)


@dataclass(frozen=True, slots=True)
class _SourcePiece:
    """Rows of a data set of the package datasets."""

    name: str
    data: str
    first: int
    images: int

    def rows(self) -> Iterator[Row]:
        source: Any = _opened(self.data)
        for index in range(self.first, self.first + self.images):
            data: bytes | ImageError
            try:
                data = source.read(index)
            except ImageError as error:
                data = error
            yield Row(source.key(index), data, source.columns(index))


@dataclass(frozen=True, slots=True)
class _TarRows:
    """Samples of a tar shard."""

    piece: TarPiece
    shown: str

    @property
    def name(self) -> str:
        return self.piece.name

    @property
    def images(self) -> int | None:
        return self.piece.samples

    def rows(self) -> Iterator[Row]:
        for key, data, columns in self.piece.read():
            name = f"{self.shown}/{key}" if self.shown else key
            missing = ImageError(f"Sample {name} holds no image. One member must be an image. Mend the shard.")
            yield Row(name, data or missing, columns)


def _of_each(
    files: Sequence[str], names: Sequence[str], cut: Callable[[int, str, str], Iterator[Piece]]
) -> list[Piece]:
    """The pieces of all files, in order; several are looked into at a time, as each of a far store takes its time."""
    with ThreadPoolExecutor(_LOOKED_INTO) as threads:
        found = threads.map(lambda place: list(cut(place, files[place], names[place])), range(len(files)))
        return [piece for pieces in found for piece in pieces]


def _tar(index: int, path: str, name: str, images: int, shards: int) -> Iterator[Piece]:
    shown = str(PurePosixPath(name).with_suffix("")) if shards > 1 else ""
    for piece in tar_pieces(path, f"{index:05d}", images, shards=shards):
        yield _TarRows(piece, shown)


def _parquet(index: int, path: str, name: str, images: int) -> Iterator[Piece]:
    from stepladder.data.arrow import row_count

    try:
        count = row_count(path)
    except RemoteError:
        raise
    except (DataError, OSError):  # a damaged file stops no other: reading its one piece says what is wrong
        yield _ParquetPiece(f"{index:05d}-000", path, name, 0, None)
        return
    for part, first in enumerate(range(0, count, images)):
        yield _ParquetPiece(f"{index:05d}-{part:03d}", path, name, first, min(images, count - first))


def _folder(files: Sequence[str], names: Sequence[str], images: int) -> list[Piece]:
    """Labels are places in the sorted list of top folders, where there are several."""
    tops = sorted({name.partition("/")[0] for name in names if "/" in name})
    place = {top: index for index, top in enumerate(tops)} if len(tops) > 1 else {}
    listed = [(f, n, place.get(n.partition("/")[0])) for f, n in zip(files, names, strict=True)]
    return [
        _FilePiece(f"{part:05d}-000", tuple(listed[first : first + images]))
        for part, first in enumerate(range(0, len(listed), images))
    ]


def _of_source(data: str, images: int) -> Pieces:
    source = _opened(data)
    parts = enumerate(range(0, len(source), images))
    cut = [_SourcePiece(f"00000-{part:03d}", data, first, min(images, len(source) - first)) for part, first in parts]
    return Pieces(source.name, (source.name, str(len(source))), tuple(cut))


@lru_cache(maxsize=2)
def _opened(data: str) -> ImageSource:
    return open_source(data)


def _files_at(path: Path) -> list[Path]:
    try:
        return list(images_below(path)) if path.is_dir() else [path]
    except OSError as error:
        raise DataError(
            f"Folder {error.filename} cannot be listed: {error.strerror}. A readable folder is needed. Change its "
            "permissions, or name another folder."
        ) from error


def _of_one_kind(files: Sequence[str]) -> list[str]:
    """Of what is below a remote folder: the tar shards, else the Parquet files, else the images."""
    for suffixes in ((".tar",), (".parquet",)):
        if found := [file for file in files if file.lower().endswith(suffixes)]:
            return found
    return [file for file in files if is_image_name(PurePosixPath(file).name)]


def _short_names(files: Sequence[str]) -> list[str]:
    """Paths below the folder that all share."""
    parts = [file.replace(os.sep, "/").split("/") for file in files]
    shared = 0
    for names in zip(*(part[:-1] for part in parts), strict=False):
        if len(set(names)) > 1:
            break
        shared += 1
    return ["/".join(part[shared:]) for part in parts]


def _read_file(path: str, name: str) -> bytes:
    if not is_remote(path):
        return read_bytes(Path(path), key=name)
    with open_file(path) as file:
        return file.read()
