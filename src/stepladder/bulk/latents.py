"""Latents in Parquet files, as pieces: what a bulk encode wrote, or a generator in the same columns.

Needed are `id`, `latent`, `dtype` and `shape`; `height`, `width`, `model` and `error` are read where they are.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from stepladder.data.pieces import Piece, Row
from stepladder.data.remote import is_remote, list_files
from stepladder.data.source import expand
from stepladder.errors import DataError

__all__ = ["LatentPiece", "LatentPieces", "LatentRow", "plan_latents"]

_NAME = re.compile(r"latents-(\d+-\d+)\.parquet")
_NEEDED = ("id", "latent", "dtype", "shape")
_DTYPES = {"float32", "float16", "bfloat16", "uint8", "uint16", "int32"}


@dataclass(frozen=True, slots=True)
class LatentRow:
    """One latent."""

    id: str
    values: Tensor | None
    """None where the encode of its image failed."""
    size: tuple[int, int] | None
    """(H, W) of the image; None for all that the latent covers."""
    model: str | None
    """Fingerprint of the encoder, where it is known."""
    error: str | None
    original: Row | None
    """The image that it was made from, where originals were named."""


@dataclass(frozen=True, slots=True)
class LatentPiece:
    """Latents of one file."""

    name: str
    path: str
    first: int = 0
    images: int | None = None
    originals: Piece | None = field(default=None)
    """The images that they were made from, in the same order."""
    size: int | None = None
    """Side to which these are cut; None where they keep their sizes."""

    def rows(self) -> Iterator[Row]:
        """Not images: read `latents`."""
        raise AssertionError("a shard of latents has no encoded images")

    def latents(self) -> Iterator[LatentRow]:
        """Reads them from front to back.

        Raises:
            DataError: If the file is damaged or holds no latents, or the originals are others.
        """
        from stepladder.data.arrow import tables_of

        originals = self.originals.rows() if self.originals is not None else None
        for _, table in tables_of(self.path, self.first, self.images):
            missing = [name for name in _NEEDED if name not in table.column_names]
            if missing:
                raise DataError(
                    f"Parquet file {self.path} has no column '{missing[0]}'; its columns are "
                    f"{', '.join(table.column_names)}. Latents need {', '.join(_NEEDED)}. Write them as 'bulk encode' "
                    "does."
                )
            kept = [name for name in (*_NEEDED, "height", "width", "model", "error") if name in table.column_names]
            for row in table.select(kept).to_pylist():
                original = next(originals, None) if originals is not None else None
                if originals is not None and (original is None or original.id != row["id"]):
                    found = "none" if original is None else original.id
                    raise DataError(
                        f"Latent {row['id']} of {self.path} meets the original {found}. Latents and originals stand in "
                        "one order. Name the data set that was encoded."
                    )
                yield self._row(row, original)

    def _row(self, row: dict[str, Any], original: Row | None) -> LatentRow:
        values = None
        if row["latent"] is not None:
            try:
                if row["dtype"] not in _DTYPES:
                    raise ValueError(f"type {row['dtype']}")
                kind = getattr(torch, row["dtype"])
                values = torch.frombuffer(bytearray(row["latent"]), dtype=kind).view(*row["shape"])
            except (TypeError, ValueError, RuntimeError) as error:
                raise DataError(
                    f"Latent {row['id']} of {self.path} cannot be read: {error}. The bytes of its dtype and shape are "
                    "needed. Write it as 'bulk encode' does."
                ) from error
        size = (row["height"], row["width"]) if row.get("height") and row.get("width") else None
        return LatentRow(row["id"], values, size, row.get("model"), row.get("error"), original)


@dataclass(frozen=True, slots=True)
class LatentPieces:
    """Latents, cut."""

    files: tuple[str, ...]
    """What they consist of."""
    pieces: tuple[LatentPiece, ...]


def plan_latents(data: str, *, images: int) -> LatentPieces:
    """Cuts latents: each file of a bulk encode is a piece, and others give pieces of at most `images` rows.

    Raises:
        DataError: If there are none.
    """
    found = list_files(data) if is_remote(data) else [str(path) for entry in expand(data) for path in _files_at(entry)]
    files = sorted(file for file in found if file.endswith(".parquet"))
    if not files:
        raise DataError(
            f"No latents at '{data}'. Parquet files, or a folder that 'bulk encode --layout parquet' wrote, are "
            "needed. Check the path."
        )
    names = [PurePosixPath(file).name for file in files]
    matches = [_NAME.fullmatch(name) for name in names]
    pieces: list[LatentPiece] = []
    for index, (file, match) in enumerate(zip(files, matches, strict=True)):
        pieces += [LatentPiece(match[1], file)] if all(matches) and match else _cut(index, file, images)
    return LatentPieces(tuple(names), tuple(pieces))


def _files_at(path: Path) -> list[Path]:
    return list(path.glob("*.parquet")) if path.is_dir() else [path]


def _cut(index: int, file: str, images: int) -> Iterator[LatentPiece]:
    from stepladder.data.arrow import row_count

    count = row_count(file)
    for part, first in enumerate(range(0, count, images)):
        yield LatentPiece(f"{index:05d}-{part:03d}", file, first, min(images, count - first))
