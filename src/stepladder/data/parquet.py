"""Images in Parquet files, as the Hugging Face hub stores them.

The image column is a struct that holds `bytes` (and `path`), or a plain binary column. A Parquet file is read one row
group at a time: reading an image reads its row group, unless that is in the cache of recently used ones, which holds up
to `CACHE_BYTES`. So random access is fast for data sets that fit in the cache and for small row groups; otherwise, tar
shards are faster.

Reference: https://huggingface.co/docs/datasets/image_dataset, https://arrow.apache.org/docs/python/parquet.html
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stepladder.data.arrow import image_column, pa, pc, pq
from stepladder.data.npy import from_npy, to_npy
from stepladder.errors import DataError, ImageError, brief
from stepladder.files import parse_json, write_atomically
from stepladder.images import to_png

if TYPE_CHECKING:
    from stepladder.data.pairs import CodedImages

__all__ = ["CACHE_BYTES", "FINGERPRINT_KEY", "ParquetImages", "ParquetPairs", "read_origin", "write_pairs"]

CACHE_BYTES = 256 * 2**20
"""How many bytes of row groups one source keeps in each process."""

FINGERPRINT_KEY = b"stepladder.fingerprint"
"""Of the metadata of a file: JSON of the fingerprint of the encoder that made its latents."""
_ORIGIN_KEY = b"stepladder.origin"
"""Of the metadata of a file: what says which crops it holds."""
_GROUP = 8
"""Rows of a row group that is written: what is read for one image."""
_LATENT = "latent"


class ParquetImages:
    """The images in Parquet files, in the order of the files and of their rows.

    Args:
        paths: Parquet files.
        name: What messages and reports call the source.

    Raises:
        DataError: If a file cannot be read, has no image column or several, or if there is no row.
    """

    def __init__(self, paths: Sequence[Path], *, name: str) -> None:
        self.name = name
        self._rows = _Column([(path, *_describe(path)) for path in paths])
        if not len(self):
            raise DataError(f"No images in {name}. Its Parquet files have no rows. Check the path.")

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, index: int) -> bytes:
        """The bytes of an image. Raises `ImageError` if they cannot be read."""
        data = self._rows.value(index)
        if not data:
            raise ImageError(f"Image {self.key(index)} is empty. A row must hold the bytes of an image. Fill the row.")
        return bytes(data)

    def key(self, index: int) -> str:
        """File name and row: `train-0.parquet:17`."""
        return self._rows.key(index)


class ParquetPairs:
    """The images in Parquet files, and the latents in their column `latent`.

    Args:
        paths: Parquet files.
        name: What messages and reports call the source.

    Raises:
        DataError: If a file cannot be read, has no image column or several, or no column `latent`, or if there is no
            row.
    """

    def __init__(self, paths: Sequence[Path], *, name: str) -> None:
        self.name = name
        self._images = ParquetImages(paths, name=name)
        self._latents = _Column([(path, _latent_column(path), _describe(path)[1]) for path in paths])
        known = {str(path): _fingerprint(pq.read_schema(path).metadata or {}) for path in paths}
        self.fingerprints = {path: found for path, found in known.items() if found is not None}

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> bytes:
        """The bytes of an image. Raises `ImageError` if they cannot be read."""
        return self._images.read(index)

    def read_latent(self, index: int) -> np.ndarray:
        """The latent of an image. Raises `ImageError` if it cannot be read."""
        value, key = self._latents.value(index), self.key(index)
        if isinstance(value, bytes):
            return from_npy(value, key)
        try:
            return np.asarray(value, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise ImageError(
                f"Latent of {key} is no array: {error}. Accepted: nested lists (c, h, w), or the bytes of a .npy file. "
                "Store it so."
            ) from error

    def key(self, index: int) -> str:
        """File name and row: `train-0.parquet:17`."""
        return self._images.key(index)


def write_pairs(
    path: Path, batches: Iterable[CodedImages], fingerprint: Sequence[float], *, origin: str, force: bool
) -> None:
    """Writes images as PNG, and their latents in half precision beside them, to one file.

    Args:
        path: The file, written whole or not at all.
        batches: Images in [-1, 1] and their raw latents.
        fingerprint: Of the encoder.
        origin: Says which crops they are, for `read_origin`.
        force: Whether a file that is there may be replaced.

    Raises:
        OutputError: If it exists and `force` is not set, or cannot be written.
        DataError: If a latent is too large for half precision, or not finite.
    """
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), (_LATENT, pa.binary())],
        metadata={FINGERPRINT_KEY: json.dumps(list(fingerprint)).encode(), _ORIGIN_KEY: origin.encode()},
    )
    rows: list[dict[str, Any]] = []
    for batch in batches:
        for image, latent in zip(batch.images, batch.latents, strict=True):
            half = latent.half()
            if not half.isfinite().all():
                raise DataError(
                    f"Latent {len(rows)} of {path.name} is not finite in half precision; its largest value is "
                    f"{latent.abs().max().item():.3g}. Accepted: up to 65,504. Use another encoder."
                )
            name = f"{len(rows):05}.png"
            rows.append({"image": {"bytes": to_png(image), "path": name}, _LATENT: to_npy(half.numpy())})
    table = pa.Table.from_pylist(rows, schema)
    write_atomically(
        path, lambda place: pq.write_table(table, place, row_group_size=_GROUP, compression="none"), force=force
    )


def read_origin(path: Path) -> tuple[str, list[float]] | None:
    """What `write_pairs` was told of a file: its origin and the fingerprint; None of any other file."""
    try:
        known = pq.read_schema(path).metadata or {}
        origin = known[_ORIGIN_KEY].decode()
    except (pa.ArrowException, OSError, KeyError, ValueError):
        return None
    fingerprint = _fingerprint(known)
    return None if fingerprint is None else (origin, fingerprint)


class _Column:
    """One column of Parquet files, read by row groups: the (file, column, rows of each row group) of each."""

    def __init__(self, files: Sequence[tuple[Path, str, list[int]]]) -> None:
        self._groups: list[tuple[Path, int, str]] = []  # (file, row group, column)
        self._starts: list[int] = []  # index of the first row of each row group
        self._file_starts: list[int] = []  # the same, of the file that holds the row group
        count = 0
        for path, column, rows in files:
            file_start = count
            for group, size in enumerate(rows):
                self._groups.append((path, group, column))
                self._starts.append(count)
                self._file_starts.append(file_start)
                count += size
        self._length = count
        self._cache: OrderedDict[int, Any] = OrderedDict()

    def __len__(self) -> int:
        return self._length

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": OrderedDict()}

    def value(self, index: int) -> Any:
        """The value in a row. Raises `ImageError` if it cannot be read."""
        group = self._group_of(index)
        return self._values(group, index)[index - self._starts[group]].as_py()

    def key(self, index: int) -> str:
        group = self._group_of(index)
        return f"{self._groups[group][0].name}:{index - self._file_starts[group]}"

    def _group_of(self, index: int) -> int:
        if not 0 <= index < self._length:
            raise IndexError(index)
        return bisect_right(self._starts, index) - 1

    def _values(self, group: int, index: int) -> Any:
        """All values of a row group, from the cache if they are there."""
        if group not in self._cache:
            path, number, column = self._groups[group]
            try:
                with pq.ParquetFile(path, memory_map=True) as file:
                    values = file.read_row_group(number, columns=[column], use_threads=False).column(0)
            except (pa.ArrowException, OSError) as error:
                raise ImageError(
                    f"Image {self.key(index)} cannot be read from {path}: {brief(error)}. A complete Parquet "
                    "file is needed. Fetch it again."
                ) from error
            self._cache[group] = pc.struct_field(values, "bytes") if pa.types.is_struct(values.type) else values
            while len(self._cache) > 1 and sum(v.nbytes for v in self._cache.values()) > CACHE_BYTES:
                self._cache.popitem(last=False)
        self._cache.move_to_end(group)
        return self._cache[group]


def _fingerprint(metadata: Mapping[bytes, bytes]) -> list[float] | None:
    """What `stepladder cache` wrote down of the encoder of a file; None of any other file."""
    try:
        return [float(value) for value in parse_json(metadata[FINGERPRINT_KEY])]
    except (KeyError, TypeError, ValueError):
        return None


def _latent_column(path: Path) -> str:
    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
    if _LATENT not in schema.names:
        columns = ", ".join(schema.names)
        raise DataError(
            f"Parquet file {path} has no column '{_LATENT}'; its columns are {columns}. With data.latents = true each "
            "row holds an image and its latent. Write them with 'stepladder cache', or set data.latents to false."
        )
    return _LATENT


def _describe(path: Path) -> tuple[str, list[int]]:
    """The image column of a file, as a path that reads only the bytes, and the rows of each row group."""
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            rows = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"Parquet file {path} cannot be read: {brief(error)}. A complete Parquet file is needed. Fetch it "
            "again if it is damaged."
        ) from error
    column = image_column(path, schema)
    return (f"{column}.bytes" if pa.types.is_struct(schema.field(column).type) else column), rows
