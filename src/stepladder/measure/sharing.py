"""The batches of an evaluation, divided over the processes of `torchrun`.

Batch n goes to process n mod P. Which images are in it, and with which seeds they are decoded, is what it is with one
process: so are the numbers, bit for bit. An image that cannot be read has no place among the others, so with several
processes all images are looked at once before, each by one of them.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from stepladder.data import EvaluationImages
from stepladder.processes import Processes

__all__ = ["shared_batches"]


def shared_batches(images: EvaluationImages, batch: int, processes: Processes) -> Iterator[tuple[int, Tensor | None]]:
    """Batches of this process: the place of the first image among all, and the images (B, 3, size, size).

    Every process gets as many; where there is none left for it, None.

    Raises:
        DataError: If no image is readable.
        ImageError: If an image cannot be read any more.
    """
    if processes.count == 1:
        yield from _alone(images, batch)
        return
    readable = _readable(images, processes)
    total = len(readable) * images.crops
    for start in range(0, total, batch * processes.count):
        first = start + batch * processes.index
        places = range(first, min(first + batch, total))
        yield first, torch.stack(list(images.squares(readable, places))) if places else None


def _alone(images: EvaluationImages, batch: int) -> Iterator[tuple[int, Tensor]]:
    group: list[Tensor] = []
    done = 0
    for _, image in images:
        group.append(image)
        if len(group) == batch:
            yield done, torch.stack(group)
            done, group = done + batch, []
    if group:
        yield done, torch.stack(group)


def _readable(images: EvaluationImages, processes: Processes) -> list[int]:
    """Numbers in the source of all images that are evaluated; notes those that cannot be read."""
    length = len(images.source)
    wanted = length if images.limit is None else images.limit
    readable: list[int] = []
    images.unreadable, looked = [], 0
    while len(readable) < wanted and looked < length:
        some = range(looked, min(looked + wanted - len(readable), length))
        mine = {index: images.check(index) for index in some[processes.index :: processes.count]}
        found = {index: what for part in processes.exchange(mine) for index, what in part.items()}
        for index in some:
            what = found[index]
            readable += [index] if what is None else []
            images.unreadable += [] if what is None else [what]
        looked = some.stop
    images.conclude(len(readable), silent=not processes.main)
    return readable
