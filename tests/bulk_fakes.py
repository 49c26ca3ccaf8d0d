"""Data sets that the tests of bulk coding make."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from image_fakes import encoded


def make_rows(path: Path, *, damaged: int | None = 5, count: int = 12) -> Path:
    images = [{"bytes": encoded(n) if n != damaged else b"no image", "path": f"{n}.png"} for n in range(count)]
    columns = {"image": images, "label": list(range(count)), "caption": [f"red {n}" for n in range(count)]}
    pq.write_table(pa.table(columns), path, row_group_size=5)
    return path


def make_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path
