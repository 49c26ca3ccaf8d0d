"""WebDataset shards: uncompressed tar files of images, read at random.

A tar file is a chain of 512-byte headers, each followed by the bytes of its member. All headers are read once, when the
shard is opened; after that an image is one seek and one read. Members other than images (labels, captions) are skipped.
A compressed tar cannot be read at random and is refused.

Reference: https://github.com/webdataset/webdataset (format), https://docs.python.org/3/library/tarfile.html
"""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from pathlib import Path

from stepladder.data.files import read_bytes
from stepladder.errors import DataError
from stepladder.images import is_image_name

__all__ = ["TarImages", "tar_members"]

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class TarImages:
    """The images in tar shards, in the order of the shards and of the members.

    Args:
        paths: Tar files.
        name: What messages and reports call the source.

    Raises:
        DataError: If a shard is compressed, truncated, not a tar or not readable, or if there is no image.
    """

    def __init__(self, paths: Sequence[Path], *, name: str) -> None:
        self.name = name
        self._paths = list(paths)
        self._members: list[tuple[int, int, int]] = []  # (shard, offset, size)
        self._keys: list[str] = []
        for shard, path in enumerate(paths):
            for member in _images(tar_members(path)):
                self._members.append((shard, member.offset_data, member.size))
                self._keys.append(member.name)
        if not self._keys:
            raise DataError(
                f"No images in {name}. Members that end in .jpg, .png, .webp and the like count. Check the shards with "
                "'tar tf'."
            )

    def __len__(self) -> int:
        return len(self._keys)

    def read(self, index: int) -> bytes:
        """The bytes of a member. Raises `ImageError` if they cannot be read."""
        shard, offset, size = self._members[index]
        return read_bytes(self._paths[shard], key=self._keys[index], offset=offset, size=size)

    def key(self, index: int) -> str:
        """The name of the member in its shard."""
        return self._keys[index]


def _images(members: Sequence[tarfile.TarInfo]) -> list[tarfile.TarInfo]:
    return [member for member in members if is_image_name(member.name)]


def tar_members(path: Path) -> list[tarfile.TarInfo]:
    """The plain files of a shard, in their order.

    Raises:
        DataError: If it is compressed, truncated, no tar, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(8)
        for magic, compression in _COMPRESSED.items():
            if start.startswith(magic):
                raise DataError(
                    f"Shard {path} is compressed with {compression}. Images are read at random from plain tar files. "
                    "Decompress it first."
                )
        with tarfile.open(path, "r:") as archive:
            return [m for m in archive if m.isfile() and not m.issparse()]
    except (tarfile.TarError, OSError) as error:
        raise DataError(
            f"Shard {path} cannot be read: {error}. A complete tar file is needed. Check it with 'tar tf', and fetch "
            "it again if it is damaged."
        ) from error
