"""Processes on this machine. Each loads the model once, then takes one shard after the other.

Shards go out and outcomes come back through one pipe for each worker; images and latents never pass through it. A
worker whose driver dies ends by itself.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from stepladder.bulk.job import Job, Outcome, begin
from stepladder.data.pieces import Piece
from stepladder.memory import keep_freed_memory

__all__ = ["Pool"]


class Pool:
    """Worker processes.

    Args:
        job: What they work on.
        size: How many.
    """

    def __init__(self, job: Job, size: int) -> None:
        self.size = size
        self._job = job
        self._context = multiprocessing.get_context("spawn")  # forked threads of torch would hang
        self._workers = [self._hire(number) for number in range(size)]

    def submit(self, worker: int, piece: Piece) -> None:
        """Hands a shard to an idle worker, which may have died meanwhile: that shows when it is waited for."""
        _, pipe = self._workers[worker]
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            pipe.send(piece)

    def wait(self) -> tuple[int, Outcome | None]:
        """The next outcome; None for a worker that died, in whose place a new one stands."""
        pipes = {pipe: number for number, (_, pipe) in enumerate(self._workers)}
        while True:
            for pipe in wait(list(pipes)):
                assert isinstance(pipe, Connection)
                number = pipes[pipe]
                try:
                    outcome: Outcome = pipe.recv()
                except (EOFError, ConnectionResetError):
                    self._workers[number][0].join()
                    pipe.close()
                    self._workers[number] = self._hire(number)
                    return number, None
                return number, outcome

    def has(self, worker: int) -> bool:
        """Whoever dies is replaced."""
        return True

    def close(self) -> None:
        """Ends the workers at once: what they were making was not published."""
        for process, pipe in self._workers:
            process.kill()
            process.join()
            pipe.close()

    def _hire(self, number: int) -> tuple[SpawnProcess, Connection]:
        here, there = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(there, self._job, number), daemon=True)
        process.start()
        there.close()  # else its end would not be noticed when the worker dies
        return process, here


def _serve(pipe: Connection, job: Job, number: int) -> None:
    """The life of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the driver decides
    threading.Thread(target=_follow_the_driver, daemon=True).start()
    keep_freed_memory()
    work: Callable[[Piece], Outcome] = begin(job, number)
    while True:
        try:
            piece: Piece = pipe.recv()
        except EOFError:
            return
        pipe.send(work(piece))


def _follow_the_driver() -> None:
    driver = multiprocessing.parent_process()
    assert driver is not None
    driver.join()
    os._exit(1)
