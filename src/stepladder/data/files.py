"""What all adapters share: reading bytes of a file, and describing unreadable images.

Adapters keep no open files. Opening costs some ten microseconds, decoding a photograph some milliseconds, and without
open files, a source can be pickled, forked and copied to worker processes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stepladder.errors import ImageError

__all__ = ["Unreadable", "describe_unreadable", "read_bytes"]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An image that was skipped."""

    key: str
    """Its name in the source."""
    reason: str
    """One line that says what is wrong with it."""


def read_bytes(path: Path, *, key: str, offset: int = 0, size: int = -1) -> bytes:
    """Reads `size` bytes of a file from `offset` on; all further bytes if `size` is -1.

    Raises:
        ImageError: If the file cannot be read, or ends too early. The text names `key`.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset, os.SEEK_SET)
            data = file.read(size)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ImageError(
            f"Image {key} cannot be read from {path}: {reason}. A readable file is needed. Check that it still exists "
            "and may be read."
        ) from error
    if size >= 0 and len(data) != size:
        raise ImageError(
            f"Image {key} has {len(data)} of its {size} bytes in {path}. The file must stay as it was when it was "
            "opened. Fetch it again, then restart."
        )
    return data


def describe_unreadable(unreadable: Sequence[Unreadable], total: int) -> str:
    """One line for a warning: the number of unreadable images, and the reason for the first."""
    noun = "image" if len(unreadable) == 1 else "images"
    first = unreadable[0]
    return f"{len(unreadable)} unreadable {noun} of {total} skipped. The first is {first.key}: {first.reason}"
