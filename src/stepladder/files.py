"""Files that are written completely or not at all: to a temporary name, then moved into place. Parsed JSON."""

import contextlib
import errno
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from stepladder.errors import OutputError

__all__ = ["PathLike", "parse_json", "reason", "write_atomically"]

PathLike: TypeAlias = str | os.PathLike[str]


def write_atomically(path: Path, write: Callable[[Path], object], *, force: bool) -> None:
    """Writes a file atomically; readers of `path` see the old content or the new, never a part.

    Args:
        path: Path of the file; its folder is created if missing. The target of a link is replaced.
        write: Creates and fills the file at the path that it is given, which has the suffix of `path`. An `OSError`
            means that the disk refused.
        force: Whether a file at `path` may be replaced.

    Raises:
        OutputError: If `path` exists and `force` is not set, is no regular file, or cannot be written.
    """
    target = _target(path, force=force)
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
        permissions = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(permissions)  # some writers (safetensors) put a file for the owner alone in its place
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        _publish(temporary, target, force=force)
    except FileExistsError:
        raise _exists(path) from None
    except OSError as error:
        advice = "Free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Name another place"
        raise OutputError(f"Cannot write {path}: {reason(error)}. {advice}; nothing was left half written.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def parse_json(text: str | bytes) -> Any:
    """Plain data of a JSON text.

    Raises:
        ValueError: If it is no JSON, or nested more deeply than can be read.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def reason(error: BaseException) -> str:
    """The system's words without its number and path, or the error's own; never empty."""
    words = error.strerror if isinstance(error, OSError) else None
    return words or str(error) or type(error).__name__


def _publish(temporary: Path, target: Path, *, force: bool) -> None:
    """Renames the finished file; without `force`, it does not replace one that appeared meanwhile."""
    if not force:
        try:
            target.hardlink_to(temporary)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            if target.exists():
                raise FileExistsError(errno.EEXIST, "exists", str(target)) from None
        else:
            return
    temporary.replace(target)


def _target(path: Path, *, force: bool) -> Path:
    """Where to write: `path` with its links followed, once it is clear that it may be written."""
    try:
        target = path.resolve()
        exists, regular, folder = os.path.lexists(path), path.is_file(), path.is_dir()
    except (OSError, RuntimeError, ValueError) as error:
        raise OutputError(f"Cannot write {path}: {reason(error)}. Name another place.") from error
    if folder:
        raise OutputError(f"Cannot write {path}: it is a folder. Name a file.")
    if exists and not regular:
        raise OutputError(f"Cannot write {path}: it is no regular file. Name another place.")
    if exists and not force:
        raise _exists(path)
    return target


def _exists(path: Path) -> OutputError:
    return OutputError(f"{path} exists already. Name another place, or allow to replace it (force).")
