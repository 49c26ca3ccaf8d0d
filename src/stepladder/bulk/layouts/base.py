"""What a layout is given, and what all layouts share."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray
from torch import Tensor

from stepladder.bulk.manifest import Entry
from stepladder.bulk.options import EncodeOptions
from stepladder.bulk.statistics import ChannelStatistics
from stepladder.bulk.store import Store

__all__ = ["EncodedRow", "EncodedShard", "Layout", "array", "label_of"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedRow:
    """One image of the input."""

    id: str
    columns: dict[str, Any]
    size: tuple[int, int] | None = None
    """(H, W), once it was cut."""
    label: int | None = None
    picture: Tensor | None = None
    """(3, H, W) in uint8, for layouts that want it."""
    values: Tensor | None = None
    """Its latent (c, h, w) or (N, D), moments (2c, h, w), or code indices (h, w) or (N,)."""
    flipped: Tensor | None = None
    """The same of the mirrored image."""
    error: str | None = None
    """Why there are no values."""


@dataclass(frozen=True, kw_only=True)
class EncodedShard:
    """The images of one shard, in the order of the input."""

    name: str
    rows: list[EncodedRow]
    fingerprint: str
    options: EncodeOptions
    good: list[EncodedRow] = field(init=False)
    """Those with values."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "good", [row for row in self.rows if row.values is not None])


class Layout(Protocol):
    """Files in the way that one kind of trainer reads them."""

    wants_pictures: bool
    """Whether it also stores the images."""
    needs_labels: bool
    """Whether labels must be whole numbers."""

    def write(self, shard: EncodedShard, folder: Path) -> dict[str, Any]:
        """Writes the files of a shard, with paths as they shall be below the output; what `finish` needs of it."""
        ...

    def finish(self, store: Store, entries: Sequence[Entry], statistics: ChannelStatistics) -> None:
        """Writes what stands for all shards, once they are done."""
        ...


def array(values: Tensor | None) -> NDArray[Any]:
    """Values as a numpy array."""
    assert values is not None
    found: NDArray[Any] = values.contiguous().numpy()
    return found


def label_of(row: EncodedRow) -> int:
    """Its label; 0 where it has none, as trainers without classes expect."""
    return 0 if row.label is None else row.label
