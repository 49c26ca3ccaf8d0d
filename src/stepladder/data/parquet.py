"""Images in Parquet files, as the Hugging Face hub stores them.

The image column is a struct that holds `bytes` (and `path`), or a plain binary column. A Parquet file is read one row
group at a time: an image costs the reading of its row group, unless that is among the recently used ones, of which up
to `CACHE_BYTES` are kept. So shuffled reading is fast for data sets that fit in the cache and for small row groups; for
larger ones, tar shards read faster.

Reference: https://huggingface.co/docs/datasets/image_dataset, https://arrow.apache.org/docs/python/parquet.html
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stepladder.data.arrow import first_line, image_column, pa, pc, pq
from stepladder.errors import DataError, ImageError

__all__ = ["CACHE_BYTES", "ParquetImages"]

CACHE_BYTES = 256 * 2**20
"""How many bytes of row groups one source keeps in each process."""


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
        self._groups: list[tuple[Path, int, str]] = []  # (file, row group, column)
        self._starts: list[int] = []  # index of the first image of each row group
        self._file_starts: list[int] = []  # the same, of the file that holds the row group
        count = 0
        for path in paths:
            column, rows = _describe(path)
            file_start = count
            for group, size in enumerate(rows):
                self._groups.append((path, group, column))
                self._starts.append(count)
                self._file_starts.append(file_start)
                count += size
        self._length = count
        self._cache: OrderedDict[int, Any] = OrderedDict()
        if not count:
            raise DataError(f"No images in {name}. Its Parquet files have no rows. Check the path.")

    def __len__(self) -> int:
        return self._length

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": OrderedDict()}

    def read(self, index: int) -> bytes:
        """The bytes of an image. Raises `ImageError` if they cannot be read."""
        group = self._group_of(index)
        data = self._column(group, index)[index - self._starts[group]].as_py()
        if not data:
            raise ImageError(f"Image {self.key(index)} is empty. A row must hold the bytes of an image. Fill the row.")
        return bytes(data)

    def key(self, index: int) -> str:
        """File name and row: `train-0.parquet:17`."""
        group = self._group_of(index)
        return f"{self._groups[group][0].name}:{index - self._file_starts[group]}"

    def _group_of(self, index: int) -> int:
        if not 0 <= index < self._length:
            raise IndexError(index)
        return bisect_right(self._starts, index) - 1

    def _column(self, group: int, index: int) -> Any:
        """The bytes of all images of a row group, from the cache if they are there."""
        if group not in self._cache:
            path, number, column = self._groups[group]
            try:
                with pq.ParquetFile(path, memory_map=True) as file:
                    values = file.read_row_group(number, columns=[column], use_threads=False).column(0)
            except (pa.ArrowException, OSError) as error:
                raise ImageError(
                    f"Image {self.key(index)} cannot be read from {path}: {first_line(error)}. A complete Parquet "
                    "file is needed. Fetch it again."
                ) from error
            self._cache[group] = pc.struct_field(values, "bytes") if pa.types.is_struct(values.type) else values
            while len(self._cache) > 1 and sum(v.nbytes for v in self._cache.values()) > CACHE_BYTES:
                self._cache.popitem(last=False)
        self._cache.move_to_end(group)
        return self._cache[group]


def _describe(path: Path) -> tuple[str, list[int]]:
    """The image column of a file, as a path that reads only the bytes, and the rows of each row group."""
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            rows = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"Parquet file {path} cannot be read: {first_line(error)}. A complete Parquet file is needed. Fetch it "
            "again if it is damaged."
        ) from error
    column = image_column(path, schema)
    return (f"{column}.bytes" if pa.types.is_struct(schema.field(column).type) else column), rows
