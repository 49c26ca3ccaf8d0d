"""One interface over all kinds of data, and the function that finds the adapter for a path.

    a folder, an image file            FolderImages      images in it and below
    *.tar                              TarImages         WebDataset shards
    *.parquet, a folder with them      ParquetImages     also a downloaded data set of the hub
    a folder of save_to_disk           SavedImages       what `datasets.Dataset.save_to_disk` writes
    owner/name, owner/name:split       HubImages         a data set of the Hugging Face hub

Paths may hold wildcards (`shards/*.tar`, `**/*.tar`) and WebDataset ranges (`shard-{000..063}.tar`), and several may be
given if they are of one kind. What exists on disk always wins over a hub id of the same name.
"""

from __future__ import annotations

import glob
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from stepladder.data.folder import FolderImages
from stepladder.data.tar import TarImages
from stepladder.errors import DataError
from stepladder.images import images_below, is_image_name

__all__ = ["ImageSource", "expand", "find_files", "hub_id", "is_saved", "kind_of", "open_source", "parquet_files"]

_HUB_ID = re.compile(r"(?P<id>[\w-][\w.-]*/[\w-][\w.-]*)(?::(?P<split>\S+))?")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_SPLIT = re.compile(r"(\w+)-\d+-of-\d+\S*\.parquet")
_MAX_SHARDS = 100_000
_ACCEPTED = "Data is a folder of images, .tar shards, .parquet files (wildcards allowed), or a hub data set owner/name"


def is_saved(path: Path) -> bool:
    """Whether a folder is what `save_to_disk` of the package datasets wrote."""
    return (path / "dataset_dict.json").is_file() or (
        (path / "state.json").is_file() and (path / "dataset_info.json").is_file()
    )


class ImageSource(Protocol):
    """Encoded images, at random access. Sources hold no open files and can be pickled."""

    name: str
    """What messages and reports call the source."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """The encoded image, for example the bytes of a JPEG file. Raises `ImageError` if it cannot be read."""
        ...

    def key(self, index: int) -> str:
        """A name for the image, for messages and reports."""
        ...


def open_source(data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> ImageSource:
    """Opens a data set.

    Args:
        data: A path, a pattern, a hub id, or several paths and patterns of one kind of data.

    Returns:
        The images, in an order that depends on the data alone.

    Raises:
        DataError: If nothing is there, if it holds no images, or if it cannot be read.
        MissingDependencyError: If a package that this kind of data needs is not installed.
    """
    entries = _entries(data)
    name = ", ".join(entries)
    if len(entries) == 1 and (hub := hub_id(entries[0])):
        from stepladder.data.hub import HubImages

        return HubImages(hub[0], split=hub[1])
    paths = [path for entry in entries for path in expand(entry)]
    if len(paths) == 1 and is_saved(paths[0]):
        from stepladder.data.hub import SavedImages

        return SavedImages(paths[0], name=name)
    paths, kind = _of_one_kind(paths, name)
    match kind:
        case "tar shards":
            return TarImages(paths, name=name)
        case "Parquet files":
            from stepladder.data.parquet import ParquetImages

            return ParquetImages(paths, name=name)
        case _:
            return FolderImages(paths, name=name)


def find_files(data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> tuple[list[Path], str, str]:
    """The files that paths and patterns mean: paths, their kind, and what messages call them.

    Kinds are "image files" (folders among them), "tar shards" and "Parquet files".

    Raises:
        DataError: If nothing is there, or it is of several kinds.
    """
    entries = _entries(data)
    name = ", ".join(entries)
    paths, kind = _of_one_kind([path for entry in entries for path in expand(entry)], name)
    return paths, kind, name


def _of_one_kind(paths: list[Path], name: str) -> tuple[list[Path], str]:
    """Files that are read, in the place of folders of Parquet files, and their kind."""
    paths = [inner for path in paths for inner in parquet_files(path) or [path]]
    kinds = {kind_of(path) for path in paths}
    if len(kinds) != 1:
        found = " and ".join(sorted(kinds)) or "nothing"
        raise DataError(f"The data names {found}: '{name}'. {_ACCEPTED}. Give paths of one kind.")
    return paths, kinds.pop()


def _entries(data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    return [os.fspath(data)] if isinstance(data, str | os.PathLike) else [os.fspath(entry) for entry in data]


def expand(entry: str) -> list[Path]:
    """The existing paths that an entry means, sorted."""
    path = Path(entry).expanduser()
    if path.exists():
        return [path]
    _check_ranges(str(path))
    patterns = list(_expand_ranges(str(path)))
    missing = [pattern for pattern in patterns if not glob.has_magic(pattern) and not Path(pattern).exists()]
    found = sorted({Path(match) for pattern in patterns for match in glob.glob(pattern, recursive=True)})  # noqa: PTH207
    if missing or not found:
        raise DataError(f"No data at '{missing[0] if missing else entry}'. {_ACCEPTED}. Check the path.")
    return found


def parquet_files(folder: Path) -> list[Path]:
    """The Parquet files of a folder that holds no images, such as a downloaded data set; none of anything else.

    Raises:
        DataError: If they are of several splits.
    """
    if not folder.is_dir():
        return []
    found = sorted(path for path in folder.rglob("[!.]*.parquet") if _is_plain_file(path, folder))
    if not found or any(True for _ in images_below(folder)):
        return []
    splits = {match[1]: path for path in found if (match := _SPLIT.match(path.name))}
    if len(splits) > 1:
        split, path = next(iter(splits.items()))
        raise DataError(
            f"Folder {folder} holds the splits {', '.join(sorted(splits))}. One split is needed. Write "
            f"'{path.parent}/{split}-*.parquet'."
        )
    return found


def _is_plain_file(path: Path, root: Path) -> bool:
    """Whether it is a file in no hidden folder, such as the cache of the hub's client."""
    return path.is_file() and not any(part.startswith(".") for part in path.relative_to(root).parts)


def _check_ranges(pattern: str) -> None:
    """Refuses ranges that mean more paths than can be listed."""
    ranges = _RANGE.findall(pattern)
    longest = max((len(number) for numbers in ranges for number in numbers), default=0)
    if longest > 9 or math.prod(int(last) - int(first) + 1 for first, last in ranges) > _MAX_SHARDS:
        raise DataError(
            f"The data '{pattern[:80]}' names too many shards. Up to {_MAX_SHARDS:,} are read. Write a shorter range."
        )


def _expand_ranges(pattern: str) -> Iterator[str]:
    """`a-{08..10}` gives `a-08`, `a-09`, `a-10`."""
    found = _RANGE.search(pattern)
    if found is None:
        yield pattern
        return
    first, last = found.groups()
    for number in range(int(first), int(last) + 1):
        yield from _expand_ranges(f"{pattern[: found.start()]}{number:0{len(first)}d}{pattern[found.end() :]}")


def kind_of(path: Path) -> str:
    """What a path is: "tar shards", "Parquet files" or "image files".

    Raises:
        DataError: If it is none of them.
    """
    name = path.name.lower()
    if path.is_dir():
        return "image files"
    if name.endswith((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")):
        return "tar shards"
    if name.endswith(".parquet"):
        return "Parquet files"
    if is_image_name(name):
        return "image files"
    raise DataError(f"The data '{path}' is of no known kind. {_ACCEPTED}. Check the path.")


def hub_id(entry: str) -> tuple[str, str | None] | None:
    """The name and split of a hub data set, or None if the entry means files."""
    found = _HUB_ID.fullmatch(entry)
    if found is None or Path(entry).exists() or re.search(r"\.(tar|tgz|parquet|gz)$", entry) or is_image_name(entry):
        return None
    return found["id"], found["split"]
