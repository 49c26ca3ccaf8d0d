"""Parquet files as streams of rows, and tables written: the only module that imports pyarrow."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stepladder.data.remote import RemoteError, is_remote, open_file
from stepladder.errors import DataError, MissingDependencyError, brief

try:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
except ImportError as error:
    raise MissingDependencyError(
        "Parquet files cannot be read or written: pyarrow is not installed. They need the extra 'train' or 'bulk'. "
        "Run pip install 'stepladder[train]'."
    ) from error

__all__ = [
    "image_column",
    "load_companions",
    "pa",
    "pc",
    "pq",
    "row_count",
    "rows_of",
    "tables_of",
    "write_table",
]

_USUAL_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes")
_ROWS_AT_ONCE = 64


def row_count(path: str) -> int:
    """Rows of a Parquet file, from its footer.

    Raises:
        DataError: If it is damaged.
        RemoteError: If a remote one cannot be read.
    """
    with open_file(path) as file, _explained(path):
        return int(pq.ParquetFile(file).metadata.num_rows)


def rows_of(path: str, first: int, count: int | None) -> Iterator[tuple[int, bytes | None, dict[str, Any]]]:
    """Index, image and other columns of `count` rows of a Parquet file from row `first` on; of all further rows if
    None.

    Raises:
        DataError: If the file is damaged, or has no image column or several.
        RemoteError: If a remote one breaks off.
    """
    for place, table in tables_of(path, first, count):
        yield from _rows(table, image_column(path, table.schema), place)


def tables_of(path: str, first: int, count: int | None) -> Iterator[tuple[int, Any]]:
    """The same rows as tables with the index of their first row; only their row groups are read, one at a time.

    Raises:
        DataError: If the file is damaged.
        RemoteError: If a remote one breaks off.
    """
    with open_file(path) as stream:
        with _explained(path):
            file = pq.ParquetFile(stream)
        stop = file.metadata.num_rows if count is None else first + count
        start = 0
        for group in range(file.metadata.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            if start < stop and end > first:
                low, high = max(first, start), min(stop, end)
                with _explained(path):
                    table = file.read_row_group(group, use_threads=False)
                yield low, table.slice(low - start, high - low)
            start = end


def image_column(path: object, schema: Any) -> str:
    """The image column of a schema: one struct with 'bytes', or one binary column.

    Raises:
        DataError: If there is none, or several of no usual name.
    """
    structs = [f.name for f in schema if pa.types.is_struct(f.type) and _is_binary_field(f.type, "bytes")]
    candidates = structs or [f.name for f in schema if _is_binary(f.type)]
    usual = [name for name in _USUAL_NAMES if name in candidates]
    if not usual and len(candidates) != 1:
        columns = ", ".join(f"{field.name} ({_short(field.type)})" for field in schema)
        raise DataError(
            f"Parquet file {path} has {'several' if candidates else 'no'} image columns; its columns are {columns}. "
            "One struct with 'bytes', or one binary column, is needed. Rename the image column to 'image'."
        )
    name: str = (usual or candidates)[0]
    return name


def write_table(path: Path, columns: Mapping[str, Any], types: Mapping[str, str]) -> None:
    """Writes a Parquet file.

    Args:
        path: Where.
        columns: Values by name, as many in each.
        types: Arrow types by name, such as "binary" or "list<int32>"; inferred from values for the others.
    """
    arrays = {}
    for name, values in columns.items():
        kind = types.get(name)
        if kind is not None and kind.startswith("list<"):
            arrays[name] = pa.array(values, pa.list_(pa.type_for_alias(kind[5:-1])))
        else:
            arrays[name] = pa.array(values, pa.type_for_alias(kind) if kind else None)
    pq.write_table(pa.table(arrays), path, compression="zstd", row_group_size=_ROWS_AT_ONCE * 4)


def load_companions() -> None:
    """Loads what pyarrow looks for when it makes its first array: pandas, which takes longer than many images."""
    pa.array([])


def _rows(table: Any, column: str, first: int) -> Iterator[tuple[int, bytes | None, dict[str, Any]]]:
    others = [name for name in table.column_names if name != column]
    for start in range(0, table.num_rows, _ROWS_AT_ONCE):
        part = table.slice(start, _ROWS_AT_ONCE)
        images = part.column(column)
        if pa.types.is_struct(images.type):
            images = pc.struct_field(images, "bytes")
        for place, (image, row) in enumerate(zip(images, part.select(others).to_pylist(), strict=True)):
            data = image.as_py()
            yield first + start + place, bytes(data) if data else None, row


@contextlib.contextmanager
def _explained(path: str) -> Iterator[None]:
    """Turns what pyarrow says into one line, and, of a remote file, what its protocol says."""
    try:
        yield
    except Exception as error:
        if is_remote(path) and not isinstance(error, pa.ArrowException):  # each protocol has its own
            raise RemoteError(
                f"Parquet file {path} broke off: {brief(error)}. A connection and a complete file are needed. Run "
                "the same command again."
            ) from error
        if not isinstance(error, pa.ArrowException | OSError):
            raise
        raise DataError(
            f"Parquet file {path} cannot be read: {brief(error)}. A complete Parquet file is needed. Fetch it "
            "again if it is damaged."
        ) from error


def _is_binary(kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_binary_field(struct: Any, name: str) -> bool:
    return struct.get_field_index(name) >= 0 and _is_binary(struct.field(name).type)


def _short(kind: Any) -> str:
    return "struct" if pa.types.is_struct(kind) else str(kind)
