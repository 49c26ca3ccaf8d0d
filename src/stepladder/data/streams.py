"""Training batches from streams: shards that are read from front to back, locally or from object storage.

Images come in lanes (`stepladder.data.lanes`), G of them over all processes. Lane l belongs to process l mod P, and
batch t of a process comes from its lane t mod G/P: the batch t P + p of all comes from lane (t P + p) mod G. Loader
processes divide the lanes of their process among them, so that their number changes no batch.

A checkpoint stores the position of each lane, so a resume is exact bit for bit, also with another number of processes
that divides G, unless the data has changed. Shards are shuffled, and images within the buffer of a lane, not over the
whole data set: write shards in random order, as is usual. Lanes whose shards hold fewer images begin their next epoch
earlier.
"""

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from stepladder.data.crops import CropConfig
from stepladder.data.files import Unreadable
from stepladder.data.lanes import Lane, LaneBatch, LanePlace, StreamConfig
from stepladder.data.loading import as_it_is, leave_signals_to_the_run
from stepladder.data.pieces import Piece, plan_pieces
from stepladder.errors import ConfigError, StepladderError

__all__ = ["ImageStream", "stream_pieces"]

_log = logging.getLogger(__name__)

_WHOLE = 2**40
"""Rows of a piece: a tar shard or a Parquet file is never divided, since its pieces could not be told from its end."""


def stream_pieces(data: Sequence[str]) -> tuple[Piece, ...]:
    """The shards of paths, patterns and URLs, each as one piece.

    Raises:
        DataError: If nothing is there.
    """
    return tuple(piece for entry in data for piece in plan_pieces(entry, images=_WHOLE).pieces)


class ImageStream:
    """Endless training batches of one process, with a state that a checkpoint holds.

    Args:
        pieces: Shards, from `stream_pieces`.
        config: Lanes and buffer.
        crop: How crops are cut.
        batch_size: Crops in a batch; a multiple of `crop.crops_per_image`.
        seed: Fixes the order of shards and images, and all crops.
        process_index: Which of the processes this is.
        num_processes: How many train together.
        num_workers: Processes that read and decode ahead; does not change batches.
        start_batch: Number of the first batch.

    Raises:
        ConfigError: If lanes, processes and shards do not fit each other.
    """

    def __init__(
        self,
        pieces: Sequence[Piece],
        config: StreamConfig,
        *,
        crop: CropConfig,
        batch_size: int,
        seed: int,
        process_index: int = 0,
        num_processes: int = 1,
        num_workers: int = 0,
        start_batch: int = 0,
    ) -> None:
        _check(config, len(pieces), num_processes)
        self._mine = range(process_index, config.lanes, num_processes)
        self._batches = _StreamBatches(
            pieces,
            config,
            lanes=tuple(self._mine),
            crop=crop,
            images=batch_size // crop.crops_per_image,
            seed=seed,
            start=start_batch,
        )
        self._workers = max(n for n in range(1, num_workers + 1) if len(self._mine) % n == 0) if num_workers else 0
        self._places: dict[int, dict[str, int]] = {}
        self._found: dict[str, Unreadable] = {}
        self._stream: Iterator[LaneBatch | StepladderError] | None = None

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        """The next batch, (B, 3, size, size) in [-1, 1]. Raises `DataError` where a shard cannot be read."""
        if self._stream is None:
            self._stream = iter(self._loader())
        batch = next(self._stream)
        if isinstance(batch, StepladderError):
            raise batch
        self._places[batch.lane] = batch.place
        fresh = [each for each in batch.unreadable if each.key not in self._found]
        self._found.update({each.key: each for each in fresh})
        for each in fresh:
            _log.warning("Passed over an image of the stream: %s", each.reason)
        return batch.images

    def state(self) -> dict[str, dict[str, int]]:
        """Position of each lane of this process after the last batch, for `go_on`."""
        return {str(lane): place for lane, place in self._places.items()}

    def go_on(self, state: Mapping[str, Mapping[str, int]]) -> None:
        """Continues from the positions of lanes of all processes; called before the first batch."""
        self._places = {lane: dict(state[str(lane)]) for lane in self._mine if str(lane) in state}
        self._batches.places = {lane: LanePlace(**place) for lane, place in self._places.items()}

    def _loader(self) -> DataLoader[Any]:
        return DataLoader(
            self._batches,
            batch_size=None,
            num_workers=self._workers,
            collate_fn=as_it_is,
            worker_init_fn=leave_signals_to_the_run if self._workers else None,
            prefetch_factor=2 if self._workers else None,
            pin_memory=torch.cuda.is_available(),  # so that copies to the device go on beside its work
            generator=torch.Generator(),  # else the loader draws its worker seed from the global generator
        )


class _StreamBatches(IterableDataset["LaneBatch | StepladderError"]):
    """The batches of one process; in a loader process, every W-th of them."""

    def __init__(
        self,
        pieces: Sequence[Piece],
        config: StreamConfig,
        *,
        lanes: Sequence[int],
        crop: CropConfig,
        images: int,
        seed: int,
        start: int,
    ) -> None:
        super().__init__()
        self.places: dict[int, LanePlace] = {}
        self._pieces, self._config, self._lanes = pieces, config, lanes
        self._crop, self._images, self._seed, self._start = crop, images, seed, start

    def __iter__(self) -> Iterator[LaneBatch | StepladderError]:
        info = get_worker_info()
        first, step = (0, 1) if info is None else (info.id, info.num_workers)
        lanes: dict[int, Lane] = {}
        for batch in itertools.count(self._start + first, step):
            number = self._lanes[batch % len(self._lanes)]
            if number not in lanes:
                place = self.places.get(number, LanePlace())
                lanes[number] = Lane(self._pieces, number, self._config, self._seed, place)
            try:
                yield lanes[number].batch(self._images, self._crop)
            except StepladderError as error:  # as an item: DataLoader would wrap it in a traceback of many lines
                yield error
                return


def _check(config: StreamConfig, shards: int, processes: int) -> None:
    if config.lanes % processes:
        raise ConfigError(
            f"data.stream.lanes is {config.lanes}, which {processes} processes cannot share. A multiple of their "
            f"number is needed. Set it to {max(1, round(config.lanes / processes)) * processes}."
        )
    if shards < config.lanes:
        raise ConfigError(
            f"data.stream.lanes is {config.lanes}, and the data has {shards} shards. Each lane needs one. Set it to "
            f"{max(1, shards // processes) * processes} or less, or write more shards."
        )
