"""Local and remote files: `s3://`, `gs://`, `hf://`, `https://` and all other protocols of fsspec.

A text with `://` names a remote file, and everything else a local one, which is opened without fsspec.

Reference: https://filesystem-spec.readthedocs.io/en/latest/api.html#built-in-implementations
"""

from pathlib import Path
from typing import IO, Any

from stepladder.errors import DataError, MissingDependencyError, brief

__all__ = ["RemoteError", "file_system", "is_remote", "list_files", "open_file"]


class RemoteError(DataError):
    """A remote file that could not be read; another try may succeed."""


def is_remote(entry: str) -> bool:
    """Whether a text names something that fsspec opens."""
    return "://" in entry


def open_file(path: str) -> IO[bytes]:
    """Opens a local or remote file for reading bytes.

    Raises:
        RemoteError: If a remote file cannot be opened.
        OSError: If a local one cannot.
        MissingDependencyError: If its protocol needs a package that is not installed.
    """
    if not is_remote(path):
        return Path(path).open("rb")
    system, place = file_system(path)
    try:
        opened: IO[bytes] = system.open(place, "rb")
    except Exception as error:  # each protocol has its own
        raise _unreachable(path, error) from error
    return opened


def list_files(entry: str) -> list[str]:
    """The files that a remote entry means, sorted: those below a folder, those that match a pattern, or itself.

    Raises:
        RemoteError: If they cannot be listed.
        DataError: If there are none.
    """
    system, place = file_system(entry)
    try:
        if any(character in place for character in "*?["):
            found = system.glob(place)
        elif system.isdir(place):
            found = system.find(place)
        else:
            found = [place] if system.exists(place) else []
    except Exception as error:  # each protocol has its own
        raise _unreachable(entry, error) from error
    if not found:
        raise DataError(f"No data at '{entry}'. A remote file, folder or pattern that exists is needed. Check it.")
    return sorted(system.unstrip_protocol(name) for name in found)


def file_system(entry: str) -> tuple[Any, str]:
    """The file system of fsspec that a remote entry names, and the path in it.

    Raises:
        DataError: If fsspec does not know the protocol.
        MissingDependencyError: If it needs a package that is not installed.
    """
    import fsspec

    try:
        system, place = fsspec.url_to_fs(entry)
    except ImportError as error:
        raise MissingDependencyError(
            f"'{entry}' needs a package that is not installed: {error}. Install it, or copy the data here."
        ) from error
    except ValueError as error:
        raise DataError(
            f"'{entry}' cannot be opened: {error}. Accepted: s3://, gs://, hf://, https:// and other protocols of "
            "fsspec. Check the protocol."
        ) from error
    return system, place


def _unreachable(path: str, error: Exception) -> RemoteError:
    return RemoteError(
        f"Remote file {path} cannot be read: {brief(error)}. A connection is needed, and the right to read it. "
        "Check both, then run the same command again."
    )
