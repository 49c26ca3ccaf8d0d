"""The batches of a run on images: by random access to local data, or from streams of shards."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor
from torch.profiler import record_function

from stepladder.data import (
    CodedImages,
    CropConfig,
    ImageStream,
    open_pairs,
    open_source,
    stream_pieces,
    training_loader,
)
from stepladder.training.config.run import DataConfig

__all__ = ["Batch", "Batches", "Places", "ResumableBatches", "image_batches", "next_batch", "to_device"]


Batch: TypeAlias = Tensor | CodedImages
"""A batch: images, images with their latents, or any other tensor that an objective takes."""

Places: TypeAlias = dict[str, dict[str, int]]
"""Where streams are, by lane."""


class Batches(Protocol):
    """Endless batches of one process."""

    def __call__(self, *, start_batch: int, process_index: int, num_processes: int) -> Iterator[Batch]:
        """The batches of a process from number `start_batch` on; a function of these three."""
        ...


@runtime_checkable
class ResumableBatches(Protocol):
    """Batches whose position does not follow from their number, so that a checkpoint stores it."""

    def state(self) -> Places:
        """The position after the last batch; the states of all processes together make one."""
        ...

    def go_on(self, state: Places) -> None:
        """Continues from the state of all processes; called before the first batch."""
        ...


def image_batches(data: DataConfig, *, crop: CropConfig, batch_size: int, seed: int) -> Callable[..., Iterator[Batch]]:
    """Opens the images of a run.

    Args:
        data: Where they are.
        crop: How crops are cut.
        batch_size: Of one process.
        seed: Fixes their order and all crops.

    Returns:
        A function of `start_batch`, `process_index` and `num_processes`, all optional: endless batches
        (B, 3, size, size) in [-1, 1] of one process; with their latents, cut at multiples of `stride`, where the data
        holds latents.

    Raises:
        DataError: If the data cannot be used.
    """
    shared: dict[str, Any] = {"crop": crop, "batch_size": batch_size, "seed": seed, "num_workers": data.workers}
    if data.stream is not None:
        return partial(ImageStream, stream_pieces(data.train), data.stream, **shared)
    source = open_pairs(data.train) if data.latents else open_source(data.train)
    return partial(training_loader, source, **shared)


@record_function("data")
def next_batch(stream: Iterator[Batch]) -> Batch:
    """Waits for the next batch."""
    return next(stream)


@record_function("copy")
def to_device(batch: Batch, device: torch.device) -> Batch:
    """Copies a batch to the device, images with their channels last; a pinned batch is copied asynchronously."""
    if not isinstance(batch, Tensor):
        return batch.to(device)
    if batch.ndim == 4:
        return batch.to(device, memory_format=torch.channels_last, non_blocking=True)
    return batch.to(device, non_blocking=True)
