"""The endless stream of training batches.

Let a source have N images. The stream is one sequence of positions q = 0, 1, 2, ...; position q draws image
`order(epoch)[q mod N]` in epoch `q div N`, where `order(epoch)` is a fresh permutation of all N images. It is cut into
batches g = 0, 1, 2, ... of m images, and process p of P takes the batches p, p + P, p + 2 P, ... So

    position of image j of batch n of process p = (n P + p) m + j.

In an epoch every image is drawn once, by exactly one process; nothing is dropped or repeated at its end, because the
next epoch follows immediately, if necessary inside a batch. A permutation depends only on (seed, epoch), and a crop
only on (seed, q). Hence batch g is a pure function of (seed, g), whatever the number of workers and of processes, and a
run resumes exactly by starting at batch n, also with another P: at the same g.
"""

from __future__ import annotations

import itertools
import logging
import signal
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from stepladder.data.crops import CropConfig, random_crop
from stepladder.data.files import Unreadable, describe_unreadable
from stepladder.data.pairs import (
    CodedImage,
    CodedImages,
    PairSource,
    check_window,
    random_window,
    read_pair,
    stack_pairs,
)
from stepladder.data.source import ImageSource
from stepladder.errors import ConfigError, DataError, ImageError, StepladderError
from stepladder.images import load_image, to_tensor

__all__ = ["TrainingBatch", "TrainingCrops", "as_it_is", "leave_signals_to_the_run", "training_loader"]

_log = logging.getLogger(__name__)

_ORDER, _CROP = 0, 1  # separate random streams of one seed


class TrainingBatch(NamedTuple):
    """A batch of crops, and the images that had to be replaced in it."""

    images: Float[Tensor, "b 3 s s"] | CodedImages
    """In [-1, 1]; with their latents, where the source holds them."""
    unreadable: tuple[Unreadable, ...]
    """Images of this batch that could not be read."""


class TrainingCrops(Dataset[TrainingBatch]):
    """Item n is the whole batch n of one process; there is no last item.

    An unreadable image is replaced by the next readable one of the source.

    Args:
        source: The images, or images with their latents beside them: these are cut by whole cells (`pairs`).
        crop: How crops are cut.
        batch_size: Crops in a batch; a multiple of `crop.crops_per_image`, whose crops are neighbours in the batch.
        seed: Fixes the order of the images and all crops; at least 0.
        process_index: Which of the processes this is, from 0 on.
        num_processes: How many processes train together.
        stride: Of the latents, where the source holds them.

    Raises:
        ConfigError: If an argument is out of range.
    """

    def __init__(
        self,
        source: ImageSource | PairSource,
        *,
        crop: CropConfig,
        batch_size: int,
        seed: int,
        process_index: int = 0,
        num_processes: int = 1,
        stride: int = 1,
    ) -> None:
        if batch_size < 1 or batch_size % crop.crops_per_image:
            raise ConfigError(
                f"Batch size {batch_size} does not hold whole images of {crop.crops_per_image} crops. A positive "
                "multiple of crops_per_image is needed. Change batch_size or crop.crops_per_image."
            )
        if seed < 0:
            raise ConfigError(f"Seed is {seed}. It must be at least 0. Set another seed.")
        if not 0 <= process_index < num_processes:
            raise ConfigError(
                f"Process index {process_index} of {num_processes} processes. It must be at least 0 and below the "
                "number of processes. Start the run with accelerate."
            )
        self.source = source
        self.crop = crop
        self.stride = stride
        self.images_per_batch = batch_size // crop.crops_per_image
        self.seed = seed
        self.process_index = process_index
        self.num_processes = num_processes
        self._orders: dict[int, NDArray[np.int64]] = {}
        self._unreadable: dict[int, Unreadable] = {}

    def __getitem__(self, index: int) -> TrainingBatch:
        """Batch `index` of this process. Raises `DataError` if no image of the source is readable."""
        crops: list[Any] = []
        unreadable: list[Unreadable] = []
        for j in range(self.images_per_batch):
            position = (index * self.num_processes + self.process_index) * self.images_per_batch + j
            item = self._decode(self._image_at(position), unreadable)
            generator = _generator(self.seed, _CROP, position)
            crops += (self._cut(item, generator) for _ in range(self.crop.crops_per_image))
        together = stack_pairs(crops) if isinstance(crops[0], CodedImage) else torch.stack(crops)
        return TrainingBatch(together, tuple(unreadable))

    def epoch(self, index: int) -> int:
        """The epoch in which batch `index` begins."""
        return index * self.images_per_batch * self.num_processes // len(self.source)

    def _image_at(self, position: int) -> int:
        epoch, place = divmod(position, len(self.source))
        if epoch not in self._orders:
            # A batch reaches into at most a few epochs; the ones before the last are done with.
            self._orders = {e: order for e, order in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = _generator(self.seed, _ORDER, epoch).permutation(len(self.source))
        return int(self._orders[epoch][place])

    def _load(self, index: int, key: str) -> Image.Image | CodedImage:
        if isinstance(self.source, PairSource):
            pair = read_pair(self.source, index, self.stride)
            check_window(pair, self.crop.size)
            return pair
        return load_image(self.source.read(index), name=key)

    def _cut(self, item: Image.Image | CodedImage, generator: np.random.Generator) -> Tensor | CodedImage:
        if isinstance(item, CodedImage):
            return random_window(item, self.crop.size, self.stride, generator)
        return to_tensor(random_crop(item, self.crop, generator))

    def _decode(self, start: int, unreadable: list[Unreadable]) -> Image.Image | CodedImage:
        for offset in range(len(self.source)):
            index = (start + offset) % len(self.source)
            if index not in self._unreadable:
                key = self.source.key(index)
                try:
                    return self._load(index, key)
                except ImageError as error:
                    self._unreadable[index] = Unreadable(key, str(error))
            unreadable.append(self._unreadable[index])
        first = self._unreadable[start]
        raise DataError(
            f"None of the {len(self.source)} images of {self.source.name} can be read. At least one is needed; the "
            f"first that failed is {first.key}: {first.reason} Check the data."
        )


def training_loader(
    source: ImageSource | PairSource,
    *,
    crop: CropConfig,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    num_processes: int = 1,
    num_workers: int = 0,
    start_batch: int = 0,
    stride: int = 1,
) -> Iterator[Tensor | CodedImages]:
    """Endless training batches of one process, from batch `start_batch` on.

    Unreadable images are replaced, and one warning counts them when an epoch ends, or when the iterator is closed.

    Args:
        source: The images.
        crop: How crops are cut.
        batch_size: Crops in a batch of this process; a multiple of `crop.crops_per_image`.
        seed: Fixes the order of the images and all crops.
        process_index: Which of the processes this is, from 0 on.
        num_processes: How many processes train together; each gets other images.
        num_workers: Processes that decode ahead, with one thread each; 0 decodes in this one. Does not change batches.
        start_batch: First batch; a run that has taken n steps of one batch each resumes with n.
        stride: Of the latents, where the source holds them.

    Returns:
        Batches of shape (B, 3, size, size) in [-1, 1], or `CodedImages` where the source holds latents.

    Raises:
        ConfigError: If an argument is out of range.
        DataError: While iterating, if no image of the source is readable.
    """
    if num_workers < 0 or start_batch < 0:
        raise ConfigError(
            f"The loader was given {num_workers} workers and first batch {start_batch}. Both must be at least 0. "
            "Set num_workers to 0 to decode in the training process."
        )
    batches = TrainingCrops(
        source,
        crop=crop,
        batch_size=batch_size,
        seed=seed,
        process_index=process_index,
        num_processes=num_processes,
        stride=stride,
    )
    return _stream(batches, num_workers=num_workers, start_batch=start_batch)


def _stream(batches: TrainingCrops, *, num_workers: int, start_batch: int) -> Iterator[Tensor | CodedImages]:
    loader: DataLoader[TrainingBatch | StepladderError] = DataLoader(
        _ErrorsAsItems(batches),
        batch_size=None,
        sampler=itertools.count(start_batch),
        num_workers=num_workers,  # DataLoader gives each worker one thread
        collate_fn=as_it_is,
        worker_init_fn=leave_signals_to_the_run if num_workers else None,
        prefetch_factor=4 if num_workers else None,
        pin_memory=torch.cuda.is_available(),  # so that copies to the device go on beside its work
        generator=torch.Generator(),  # else the loader draws its worker seed from the global generator
    )
    found: dict[str, Unreadable] = {}
    reported = 0
    try:
        for index, batch in enumerate(loader, start_batch):
            if isinstance(batch, StepladderError):
                raise batch
            found.update({item.key: item for item in batch.unreadable})
            yield batch.images
            if len(found) > reported and batches.epoch(index + 1) > batches.epoch(index):
                _log.warning(describe_unreadable(list(found.values()), len(batches.source)))
                reported = len(found)
    finally:
        if len(found) > reported:
            _log.warning(describe_unreadable(list(found.values()), len(batches.source)))


class _ErrorsAsItems(Dataset["TrainingBatch | StepladderError"]):
    """Returns errors as items: DataLoader would wrap a worker's error in a traceback of many lines."""

    def __init__(self, batches: TrainingCrops) -> None:
        self.batches = batches

    def __getitem__(self, index: int) -> TrainingBatch | StepladderError:
        try:
            return self.batches[index]
        except StepladderError as error:
            return error


def leave_signals_to_the_run(_worker: int) -> None:
    """Ctrl-C reaches all processes of a terminal; workers go on until the run has written its checkpoint."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def as_it_is(item: Any) -> Any:
    """What `collate_fn` does where items are batches already; a function of a module, which workers can unpickle."""
    return item


def _generator(*entropy: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))
