"""The place that a bulk job writes to: a local folder, or one that fsspec reaches.

A file is written whole under a temporary name and then published: renamed on a local disk, uploaded in one request
elsewhere, where object stores show a file only once it is complete. So a file with a final name is never a part.
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stepladder.data.remote import file_system, is_remote
from stepladder.errors import OutputError
from stepladder.files import parse_json, reason

__all__ = ["JOB_FOLDER", "Store"]

JOB_FOLDER = "_bulk"
"""Where the manifest is, below the output."""
_MANY = 16
"""From so many files on, they are synchronised to the disk together."""


class Store:
    """A folder for results. It can be pickled.

    Args:
        url: A path, or a URL with `://`.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/") or url
        self.remote = is_remote(url)

    @contextlib.contextmanager
    def workplace(self, name: str) -> Iterator[Path]:
        """A folder for files that are not published yet; it vanishes.

        Raises:
            OutputError: If files cannot be written there.
        """
        if self.remote:
            with tempfile.TemporaryDirectory(prefix="stepladder-") as folder, self._written(name):
                yield Path(folder)
            return
        parent = Path(self.url) / JOB_FOLDER / "unfinished"
        with self._explained(name):
            parent.mkdir(parents=True, exist_ok=True)
            folder = tempfile.mkdtemp(prefix=f"{name}.", dir=parent)
        try:
            with self._written(name):
                yield Path(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, workplace: Path) -> dict[str, int]:
        """Gives all files of a workplace their final names; what had such a name is replaced.

        Returns:
            The size of each file, by its path below the output.

        Raises:
            OutputError: If the disk or the remote side refuses.
        """
        files = sorted(path for path in workplace.rglob("*") if path.is_file())
        sizes = {path.relative_to(workplace).as_posix(): path.stat().st_size for path in files}
        with self._explained(next(iter(sizes), workplace.name)):
            if self.remote:
                system, place = file_system(self.url)
                for name in sizes:
                    system.makedirs(os.path.dirname(f"{place}/{name}"), exist_ok=True)  # noqa: PTH120 (no local path)
                    system.put_file(str(workplace / name), f"{place}/{name}")
                return sizes
            _synchronise(files)
            for path, name in zip(files, sizes, strict=True):
                target = Path(self.url, name)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.chmod(0o666 & ~_umask())  # some writers put a file for the owner alone
                path.replace(target)
        return sizes

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Publishes one JSON file. Raises `OutputError` if it cannot be written."""
        self.write_text(name, json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Publishes one text file. Raises `OutputError` if it cannot be written."""
        with self.workplace(Path(name).name) as folder, self._explained(name):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
            self.publish(folder)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """The object of a JSON file; None where there is no such file, or no whole one."""
        try:
            content = parse_json(self.read(name))
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) else None

    def read(self, name: str) -> bytes:
        """The bytes of a file. Raises `OSError` if it cannot be read."""
        if not self.remote:
            return Path(self.url, name).read_bytes()
        system, place = file_system(self.url)
        content: bytes = system.cat_file(f"{place}/{name}")
        return content

    def sizes(self) -> dict[str, int]:
        """The size of every file that is there, by its path below the output."""
        if self.remote:
            system, place = file_system(self.url)
            found = system.find(place, detail=True) if system.exists(place) else {}
            return {name.removeprefix(place).lstrip("/"): int(info["size"]) for name, info in found.items()}
        return dict(_walk(self.url))

    @contextlib.contextmanager
    def _written(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._refused(name, error) from error

    @contextlib.contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        """Turns what a disk or a remote side says into one line."""
        try:
            yield
        except OutputError:
            raise
        except Exception as error:
            if not (self.remote or isinstance(error, OSError)):
                raise
            raise self._refused(name, error) from error

    def _refused(self, name: str, error: Exception) -> OutputError:
        """The error for what a disk or a remote side says."""
        return OutputError(
            f"Cannot write {self.url}/{name}: {reason(error)}. A place that can be written, with space left, is "
            "needed. Make room or change the permissions, then run the same command again: what is done stays done."
        )


def _walk(folder: str) -> Iterator[tuple[str, int]]:
    for place, below, names in os.walk(folder):
        if Path(place).name == "unfinished":
            below.clear()
            continue
        for name in names:
            path = Path(place, name)
            yield path.relative_to(folder).as_posix(), path.stat().st_size


def _synchronise(files: list[Path]) -> None:
    """Puts files on the disk, so that a power cut leaves none that is empty under its final name."""
    if len(files) >= _MANY:
        os.sync()
        return
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
