"""Data sets of the Hugging Face hub and those saved to disk, through the `datasets` package.

Reference: https://huggingface.co/docs/datasets/image_dataset
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stepladder.data.files import read_bytes
from stepladder.errors import DataError, ImageError, MissingDependencyError, brief

__all__ = ["HubImages", "SavedImages"]


class _Rows:
    """The images in the rows of a data set of the package datasets, which is opened."""

    def __init__(self, datasets: Any, rows: Any, *, name: str) -> None:
        columns = [column for column, feature in rows.features.items() if isinstance(feature, datasets.Image)]
        if len(columns) != 1 and "image" not in columns:
            listed = ", ".join(rows.features)
            raise DataError(
                f"Data set '{name}' has {len(columns)} image columns; its columns are {listed}. One image column, or "
                "one called 'image', is needed. Choose another data set."
            )
        self.name = name
        self._column = "image" if "image" in columns else columns[0]
        self._rows: Any = rows.select_columns([self._column]).cast_column(self._column, datasets.Image(decode=False))
        self._others: Any = rows.remove_columns(columns) if len(rows.features) > len(columns) else None
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

    def columns(self, index: int) -> dict[str, Any]:
        """The other columns of a row."""
        return dict(self._others[index]) if self._others is not None else {}

    def key(self, index: int) -> str:
        """Data set and row: `owner/name:train#17`."""
        return f"{self.name}#{index}"


class HubImages(_Rows):
    """The images in one split of a hub data set.

    Args:
        name: `owner/name`, or a local folder that `datasets` can load.
        split: The split; None if the data set has only one. Slices such as `train[:100]` work.

    Raises:
        MissingDependencyError: If `datasets` is not installed.
        DataError: If the data set or split cannot be loaded, or if it has no image column or several.
    """

    def __init__(self, name: str, *, split: str | None = None) -> None:
        datasets = _datasets(f"No file or folder '{name}' exists, and as a hub data set it")
        try:
            rows = datasets.load_dataset(name, split=split or _only_split(datasets, name))
        except DataError:
            raise
        except Exception as error:  # whatever the hub, the network or a data set's own files may raise
            raise DataError(
                f"Hub data set '{name}' cannot be loaded: {brief(error)}. Data is a path that exists, or a hub data "
                "set owner/name[:split]. Check the name and the connection."
            ) from error
        super().__init__(datasets, rows, name=f"{name}:{split}" if split else name)


class SavedImages(_Rows):
    """The images in a folder that `save_to_disk` of the package datasets wrote.

    Args:
        folder: Of a data set, or of several splits of which there is one.
        name: What messages and reports call the source.

    Raises:
        MissingDependencyError: If `datasets` is not installed.
        DataError: If it cannot be loaded, holds several splits, or has no image column or several.
    """

    def __init__(self, folder: Path, *, name: str) -> None:
        datasets = _datasets(f"The data set in folder '{name}'")
        try:
            rows = datasets.load_from_disk(str(folder))
        except Exception as error:  # whatever a damaged folder may raise
            raise DataError(
                f"Data set in folder {folder} cannot be loaded: {brief(error)}. What save_to_disk wrote is needed. "
                "Save it again."
            ) from error
        if isinstance(rows, datasets.DatasetDict):
            if len(rows) != 1:
                raise DataError(
                    f"Folder {folder} holds the splits {', '.join(rows)}. One split is needed. Write for example "
                    f"'{folder / next(iter(rows), 'train')}'."
                )
            rows = next(iter(rows.values()))
        super().__init__(datasets, rows, name=name)


def _datasets(what: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError(
            f"{what} needs the package 'datasets', which is not installed. Check the path, or run pip install "
            "'stepladder[hub]'."
        ) from error
    return datasets


def _only_split(datasets: Any, name: str) -> str:
    splits: list[str] = datasets.get_dataset_split_names(name)
    if len(splits) != 1:
        raise DataError(
            f"Hub data set '{name}' has the splits {', '.join(splits)}. One split is needed. Write for example "
            f"'{name}:{splits[0]}'."
        )
    return splits[0]
