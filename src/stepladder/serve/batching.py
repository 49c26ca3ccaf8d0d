"""Batching of requests: one queue, one worker, images of one shape in a batch.

Each image waits by itself, so that requests of many images and of one share batches. While a batch is decoded the next
one gathers; an idle worker waits a moment for more images. A batch that fails is decoded image by image, so that no
request fails because of another.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from stepladder.errors import brief
from stepladder.serve.query import RequestError

__all__ = ["Batcher", "Tally"]


@dataclass(slots=True)
class Tally:
    """Counters of a server."""

    answers: dict[int, int] = field(default_factory=dict)
    """How many with each status."""
    images: int = 0
    batches: int = 0
    seconds: float = 0.0
    """In which batches were decoded."""

    def count(self, status: int) -> None:
        """One more answer."""
        self.answers[status] = self.answers.get(status, 0) + 1

    def text(self, waiting: int) -> str:
        """In the text format of Prometheus."""
        lines = ["# TYPE stepladder_requests_total counter"]
        lines += [f'stepladder_requests_total{{status="{key}"}} {self.answers[key]}' for key in sorted(self.answers)]
        for name, value in (("images", self.images), ("batches", self.batches), ("decode_seconds", self.seconds)):
            lines += [f"# TYPE stepladder_{name}_total counter", f"stepladder_{name}_total {value:g}"]
        lines += ["# TYPE stepladder_images_waiting gauge", f"stepladder_images_waiting {waiting}"]
        return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    latent: Tensor
    done: asyncio.Future[Tensor]


class Batcher:
    """A queue of latents and the worker that decodes them."""

    def __init__(
        self,
        decode: Callable[[Float[Tensor, "b c h w"]], Float[Tensor, "b 3 H W"]],
        *,
        batch: int,
        cells: int,
        queue: int,
        wait: float,
        tally: Tally,
    ) -> None:
        """Starts nothing yet: `run` does the work.

        Args:
            decode: Called in a thread, with one batch at a time.
            batch: Most images in a batch.
            cells: Most latent cells in a batch of several images, which bounds its memory.
            queue: Most images that wait.
            wait: Seconds that an idle worker waits for more images.
            tally: Where batches are counted.
        """
        self._decode = decode
        self._batch = batch
        self._cells = cells
        self._queue = queue
        self._wait = wait
        self._tally = tally
        self._jobs: deque[_Job] = deque()
        self._arrived = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Images in the queue."""
        return len(self._jobs)

    async def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """The images of latents, once they are decoded.

        Raises:
            RequestError: If the queue is full, or they cannot be decoded.
        """
        if self.waiting + len(latents) > self._queue:
            raise RequestError(
                f"{self.waiting} images wait already. Accepted: up to {self._queue}. Send the request again in a "
                "second.",
                503,
            )
        loop = asyncio.get_running_loop()
        jobs = [_Job(latent, loop.create_future()) for latent in latents]
        self._jobs.extend(jobs)
        self._arrived.set()
        return torch.stack([await job.done for job in jobs])

    async def run(self) -> None:
        """Decodes until it is cancelled."""
        with ThreadPoolExecutor(1, thread_name_prefix="decode") as worker:
            while True:
                if not self._jobs:
                    self._arrived.clear()
                    await self._arrived.wait()
                    await asyncio.sleep(self._wait)
                batch = self._next()
                await self._work(batch, worker)

    def _next(self) -> list[_Job]:
        """The oldest image, and those of its shape that fit beside it."""
        shape = self._jobs[0].latent.shape
        room = min(self._batch, max(1, self._cells // (shape[1] * shape[2])))
        batch = [job for job in self._jobs if job.latent.shape == shape][:room]
        taken = set(map(id, batch))
        self._jobs = deque(job for job in self._jobs if id(job) not in taken)
        return batch

    async def _work(self, batch: list[_Job], worker: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        latents = torch.stack([job.latent for job in batch])
        started = time.perf_counter()
        try:
            images = await loop.run_in_executor(worker, self._decode, latents)
        except Exception as error:  # whatever it is, the next batch may be fine
            if len(batch) > 1:
                for job in batch:
                    await self._work([job], worker)
            elif not batch[0].done.cancelled():
                batch[0].done.set_exception(_failed(error))
            return
        self._tally.batches += 1
        self._tally.images += len(batch)
        self._tally.seconds += time.perf_counter() - started
        for job, image in zip(batch, images, strict=True):
            if not job.done.cancelled():
                job.done.set_result(image)


def _failed(error: Exception) -> RequestError:
    return RequestError(
        f"The image could not be decoded: {brief(error)}. Ask for a smaller one, or tell who runs it.", 500
    )
