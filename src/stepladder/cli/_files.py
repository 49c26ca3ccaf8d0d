"""Many files in, many files out: checks before work starts."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stepladder.cli._output import shown
from stepladder.errors import ConfigError, OutputError

__all__ = ["Found", "check_distinct", "check_outputs", "find_images", "make_folder"]


@dataclass(frozen=True, slots=True)
class Found:
    """An image that was named."""

    path: Path
    name: Path
    """Without its suffix, below the folder in which it was found: the name of its results."""


def find_images(arguments: Sequence[Path], *, without: Path | None = None) -> list[Found]:
    """The files of arguments: files as they are, and images in folders, recursively. Each once.

    Args:
        arguments: Files and folders.
        without: A folder that is left out where it lies below one of them: that of the results.

    Raises:
        ImageError: If a folder holds no images.
    """
    from stepladder.images import image_files

    left_out = os.path.realpath(without) if without is not None else None
    found: dict[str, Found] = {}
    for argument in arguments:
        folder = os.path.isdir(argument)  # noqa: PTH112 (odd names)
        for path in image_files(argument, without=left_out) if folder else [argument]:
            name = path.relative_to(argument) if folder else Path(path.name)
            found.setdefault(os.path.realpath(path), Found(path, name.with_suffix("")))
    return list(found.values())


def check_distinct(results: Iterable[tuple[Path, str]]) -> None:
    """Refuses two inputs with the same result.

    Args:
        results: Each input and its result, as text.

    Raises:
        ConfigError: If two results are the same.
    """
    source_of: dict[str, Path] = {}
    for source, result in results:
        first = source_of.setdefault(result, source)
        if first != source:
            raise ConfigError(
                f"{shown(first)} and {shown(source)} would both become {result}. "
                "Rename one, or run them apart with another --out."
            )


def check_outputs(inputs: Iterable[Path], outputs: Sequence[Path], *, force: bool) -> None:
    """Refuses outputs that would overwrite something, before work starts.

    Args:
        inputs: Files that are never replaced.
        outputs: Files that will be written.
        force: Whether existing files may be replaced.

    Raises:
        OutputError: If an output is an input or a folder, or exists already.
    """
    kept = {os.path.realpath(path) for path in inputs}
    for output in outputs:
        if os.path.realpath(output) in kept:
            raise OutputError(f"{shown(output)} is an input and is not overwritten. Name another --out.")
        if os.path.isdir(output):  # noqa: PTH112 (odd names)
            raise OutputError(f"Cannot write {shown(output)}: it is a folder. Name another --out.")
    existing = [output for output in outputs if os.path.lexists(output)]
    if existing and not force:
        more = f" (and {len(existing) - 1} more)" if len(existing) > 1 else ""
        raise OutputError(f"{shown(existing[0])} exists already{more}. Pass --force to replace, or name another --out.")


def make_folder(folder: Path) -> None:
    """Makes a folder for results.

    Raises:
        OutputError: If it is a file, or cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = "it is a file" if isinstance(error, FileExistsError) else getattr(error, "strerror", None) or error
        raise OutputError(f"Cannot write to folder {shown(folder)}: {reason}. Name another --out.") from error
