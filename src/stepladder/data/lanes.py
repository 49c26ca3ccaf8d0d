"""One lane of a stream: blocks of encoded images, shuffled, one after the other.

In each epoch all shards of the data are shuffled, and lane l of G reads the shards l, l + G, l + 2G, ... of that order.
A lane reads a block of images, shuffles it, hands out its crops, and reads the next block. A block may span shards, and
ends at the end of the epoch at the latest. Five integers give the position of a lane (`LanePlace`): a lane that starts
there reads the block again, and continues inside it.
"""

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stepladder.configs import quoted
from stepladder.data.crops import CropConfig, random_crop
from stepladder.data.files import Unreadable
from stepladder.data.pieces import Piece, Row
from stepladder.data.remote import RemoteError
from stepladder.errors import ConfigError, DataError, ImageError
from stepladder.images import load_image, to_tensor

__all__ = ["Lane", "LaneBatch", "LanePlace", "StreamConfig"]

TRIES = 3
"""How often a remote shard is reopened where it breaks off."""

_ORDER, _BLOCK, _CROP = 2, 3, 4  # random streams of one seed, others than those of random access
_MOST = 1_000_000
"""Lanes, or encoded images in one."""


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """How training data is streamed."""

    lanes: int = 8
    """Streams of shards that are read side by side, over all processes together; a multiple of their number."""
    buffer: int = 1024
    """Encoded images that each lane holds and shuffles."""

    def __post_init__(self) -> None:
        for name in ("lanes", "buffer"):
            if not 1 <= getattr(self, name) <= _MOST:
                raise ConfigError(
                    f"data.stream.{name} is {quoted(getattr(self, name))}. It must be 1 to {_MOST:,}. Usual values: "
                    "8 lanes, and a buffer of 1,000 to 10,000 images."
                )


@dataclass(frozen=True, kw_only=True)
class LanePlace:
    """The position of a lane; all integers."""

    epoch: int = 0
    shard: int = 0
    """Shard in which the block begins, in the lane's order of this epoch."""
    row: int = 0
    """First row of the block in this shard."""
    block: int = 0
    """Blocks before this one."""
    out: int = 0
    """Images of the block that were returned."""


class LaneBatch(NamedTuple):
    """Crops of one lane."""

    images: Tensor
    unreadable: tuple[Unreadable, ...]
    lane: int
    place: dict[str, int]
    """Position of the lane after this batch."""


class Lane:
    """One lane: blocks of encoded images, shuffled, one after the other."""

    def __init__(self, pieces: Sequence[Piece], number: int, config: StreamConfig, seed: int, place: LanePlace) -> None:
        self._pieces, self._number, self._config, self._seed = pieces, number, config, seed
        self._place = place
        self._next = replace(place, out=0)  # where the rows that are read next stand
        self._rows: Iterator[Row] | None = None
        self._notes: list[Unreadable] = []  # shards that were passed over
        self._block: list[Row] = []
        self._order: Sequence[int] = ()

    def batch(self, images: int, crop: CropConfig) -> LaneBatch:
        """The next crops of so many images; unreadable ones are skipped."""
        crops: list[Tensor] = []
        unreadable: list[Unreadable] = []
        count = 0
        while len(crops) < images * crop.crops_per_image:
            row, draw = self._take()
            try:
                if isinstance(row.data, ImageError):
                    raise row.data
                image = load_image(row.data, name=row.id)
            except ImageError as error:
                unreadable.append(Unreadable(row.id, str(error)))
                count += 1
                if count > 2 * self._config.buffer:
                    raise DataError(
                        f"{count} images of one batch cannot be read; the last is {row.id}: {error} Check the data."
                    ) from error
                continue
            crops += (to_tensor(random_crop(image, crop, draw)) for _ in range(crop.crops_per_image))
        unreadable += self._notes
        self._notes = []
        return LaneBatch(torch.stack(crops), tuple(unreadable), self._number, asdict(self._place))

    def _take(self) -> tuple[Row, np.random.Generator]:
        """The next image and the generator of its crops."""
        if not self._order:
            self._fill()
        if self._place.out == len(self._order):
            self._place = replace(self._next, block=self._place.block + 1, out=0)
            self._fill()
        row = self._block[self._order[self._place.out]]
        draw = _generator(self._seed, _CROP, self._number, self._place.block, self._place.out)
        self._place = replace(self._place, out=self._place.out + 1)
        return row, draw

    def _fill(self) -> None:
        """Reads the block at the present place."""
        self._block = []
        while len(self._block) < self._config.buffer and (row := self._read()) is not None:
            self._block.append(row)
        draw = _generator(self._seed, _BLOCK, self._number, self._place.block)
        self._order = draw.permutation(len(self._block)).tolist()

    def _read(self) -> Row | None:
        """The next row, from whichever shard it is in; None where the epoch of a block ends. Skips damaged parts."""
        empty = tries = 0
        while empty <= len(self._pieces):
            row = None
            try:
                if self._rows is None:
                    self._rows = itertools.islice(self._shard().rows(), self._next.row, None)
                row = next(self._rows, None)
            except RemoteError:
                tries += 1
                if tries == TRIES:
                    raise
                time.sleep(tries)
                self._rows = None
                continue
            except DataError as error:
                self._notes.append(Unreadable(f"{self._shard().name} from row {self._next.row} on", str(error)))
            if row is not None:
                self._next = replace(self._next, row=self._next.row + 1)
                return row
            empty = empty + 1 if self._next.row == 0 else 0
            epoch = self._next.epoch
            self._turn_to_the_next_shard()
            if self._block and self._next.epoch > epoch:
                return None
        raise DataError("The shards of the stream hold no images that can be read. At least one is needed. Check them.")

    def _turn_to_the_next_shard(self) -> None:
        shards = len(range(self._number, len(self._pieces), self._config.lanes))
        last = self._next.shard + 1 == shards
        epoch, shard = (self._next.epoch + 1, 0) if last else (self._next.epoch, self._next.shard + 1)
        self._rows = None
        self._next = replace(self._next, epoch=epoch, shard=shard, row=0)

    def _shard(self) -> Piece:
        """The shard at the present place, in the order of its epoch."""
        order = _generator(self._seed, _ORDER, self._next.epoch).permutation(len(self._pieces))
        return self._pieces[int(order[self._number :: self._config.lanes][self._next.shard])]


def _generator(*entropy: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))
