"""Image files in folders.

The order is that of the sorted relative paths, the same on every machine and file system.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from stepladder.data.files import is_image_name, read_bytes
from stepladder.errors import DataError

__all__ = ["FolderImages"]


class FolderImages:
    """The images in folders, searched recursively, and single image files.

    Args:
        paths: Folders, image files, or both. An image file counts whatever its name is.
        name: What messages and reports call the source.

    Raises:
        DataError: If a folder cannot be listed, or if there is no image.
    """

    def __init__(self, paths: Sequence[Path], *, name: str) -> None:
        self.name = name
        self._files: list[Path] = []
        self._keys: list[str] = []
        for path in paths:
            files = list(_images_below(path)) if path.is_dir() else [path]
            root = path if path.is_dir() else path.parent
            prefix = f"{path.name}/" if path.is_dir() and len(paths) > 1 else ""
            keys = {file: prefix + file.relative_to(root).as_posix() for file in files}
            files.sort(key=keys.__getitem__)
            self._files += files
            self._keys += [keys[file] for file in files]
        if not self._files:
            raise DataError(f"No images in {name}. {_what_is_there(paths)}")

    def __len__(self) -> int:
        return len(self._files)

    def read(self, index: int) -> bytes:
        """The bytes of an image file. Raises `ImageError` if they cannot be read."""
        return read_bytes(self._files[index], key=self._keys[index])

    def key(self, index: int) -> str:
        """The path of the image relative to its folder."""
        return self._keys[index]


def _images_below(root: Path) -> Iterator[Path]:
    """All images below a folder, through symbolic links, each folder once."""
    seen: set[tuple[int, int]] = set()

    def refuse(error: OSError) -> None:
        raise DataError(
            f"Folder {error.filename} cannot be listed: {error.strerror}. A readable folder is needed. "
            "Change its permissions, or name another folder."
        ) from error

    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=refuse):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        yield from (Path(folder, name) for name in names if is_image_name(name))


def _what_is_there(folders: Sequence[Path]) -> str:
    for suffix, kind in ((".tar", "tar shards"), (".parquet", "Parquet files")):
        for folder in folders:
            if any(folder.glob(f"*{suffix}")):
                return f"It holds {kind}: give them as '{folder}/*{suffix}'."
    return "Files that end in .jpg, .png, .webp and the like count. Check the path."
