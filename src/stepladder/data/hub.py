"""Data sets of the Hugging Face hub, through the `datasets` package, which fetches and keeps them.

Reference: https://huggingface.co/docs/datasets/image_dataset
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stepladder.data.files import read_bytes
from stepladder.errors import DataError, ImageError, MissingDependencyError

__all__ = ["HubImages"]


class HubImages:
    """The images in one split of a hub data set.

    Args:
        name: `owner/name`, or a local folder that `datasets` can load.
        split: The split; None if the data set has only one. Slices such as `train[:100]` work.

    Raises:
        MissingDependencyError: If `datasets` is not installed.
        DataError: If the data set or split cannot be loaded, or if it has no image column or several.
    """

    def __init__(self, name: str, *, split: str | None = None) -> None:
        try:
            import datasets
        except ImportError as error:
            raise MissingDependencyError(
                f"No file or folder '{name}' exists, and as a hub data set it needs the package 'datasets', which is "
                "not installed. Check the path, or run pip install 'stepladder[hub]'."
            ) from error
        try:
            rows = datasets.load_dataset(name, split=split or _only_split(datasets, name))
        except DataError:
            raise
        except Exception as error:  # whatever the hub, the network or a data set's own files may raise
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise DataError(
                f"Hub data set '{name}' cannot be loaded: {reason}. Data is a path that exists, or a hub data set "
                "owner/name[:split]. Check the name and the connection."
            ) from error
        columns = [column for column, feature in rows.features.items() if isinstance(feature, datasets.Image)]
        if len(columns) != 1 and "image" not in columns:
            listed = ", ".join(rows.features)
            raise DataError(
                f"Hub data set '{name}' has {len(columns)} image columns; its columns are {listed}. One image column, "
                "or one called 'image', is needed. Choose another data set."
            )
        self.name = f"{name}:{split}" if split else name
        self._column = "image" if "image" in columns else columns[0]
        self._rows: Any = rows.select_columns([self._column]).cast_column(self._column, datasets.Image(decode=False))
        if not len(self):
            raise DataError(f"No images in {self.name}. The split has no rows. Choose another split.")

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, index: int) -> bytes:
        """The bytes of an image. Raises `ImageError` if they cannot be read."""
        value = self._rows[index][self._column] or {}
        if value.get("bytes"):
            return bytes(value["bytes"])
        if value.get("path"):
            return read_bytes(Path(value["path"]), key=self.key(index))
        raise ImageError(f"Image {self.key(index)} is empty. A row must hold an image. Choose another data set.")

    def key(self, index: int) -> str:
        """Data set and row: `owner/name:train#17`."""
        return f"{self.name}#{index}"


def _only_split(datasets: Any, name: str) -> str:
    splits: list[str] = datasets.get_dataset_split_names(name)
    if len(splits) != 1:
        raise DataError(
            f"Hub data set '{name}' has the splits {', '.join(splits)}. One split is needed. Write for example "
            f"'{name}:{splits[0]}'."
        )
    return splits[0]
