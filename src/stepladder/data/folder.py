"""Image files in folders.

The order is that of the sorted relative paths, the same on every machine and file system.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stepladder.data.files import read_bytes
from stepladder.errors import DataError
from stepladder.images import images_below

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
            files = _images_below(path) if path.is_dir() else [path]
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


def _images_below(root: Path) -> list[Path]:
    try:
        return list(images_below(root))
    except OSError as error:
        raise DataError(
            f"Folder {error.filename} cannot be listed: {error.strerror}. A readable folder is needed. "
            "Change its permissions, or name another folder."
        ) from error


def _what_is_there(folders: Sequence[Path]) -> str:
    for folder in folders:
        if any(folder.glob("*.tar")):
            return f"It holds tar shards: give them as '{folder}/*.tar'."
    return "Files that end in .jpg, .png, .webp and the like count. Check the path."
