"""Processes that share one job, as `torchrun` starts them: which this is, and what they hand to each other.

What passes between them is small and lies on the CPU: findings, not batches. So a group of its own needs no accelerator
to talk; in a training run, the group of the run is used.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any, TypeVar

from torch import distributed

from stepladder.errors import ConfigError, brief

__all__ = ["Processes", "local_index", "together"]

T = TypeVar("T")


class Processes:
    """Those of the group that is open now; this one alone where there is none."""

    def __init__(self) -> None:
        grouped = distributed.is_available() and distributed.is_initialized()
        self.index: int = distributed.get_rank() if grouped else 0
        self.count: int = distributed.get_world_size() if grouped else 1

    @property
    def main(self) -> bool:
        """Whether this is the one that reports."""
        return self.index == 0

    def gather(self, mine: T) -> list[T]:
        """What every process has, in their order, for the main one; nothing for the others. All of them call it."""
        if self.count == 1:
            return [mine]
        found: list[Any] | None = [None] * self.count if self.main else None
        distributed.gather_object(mine, found)
        return found or []

    def exchange(self, mine: T) -> list[T]:
        """What every process has, in their order, for all of them. All of them call it."""
        if self.count == 1:
            return [mine]
        found: list[Any] = [None] * self.count
        distributed.all_gather_object(found, mine)
        return found

    def share(self, value: T) -> T:
        """What the main process has, for all of them. All of them call it."""
        held: list[Any] = [value]
        if self.count > 1:
            distributed.broadcast_object_list(held)
        found: Any = held[0]
        return found


@contextlib.contextmanager
def together() -> Iterator[Processes]:
    """Opens the group of the processes that `torchrun` started with this one, if it did.

    Raises:
        ConfigError: If the processes cannot find each other.
    """
    number = os.environ.get("WORLD_SIZE", "1")
    if number == "1" or not distributed.is_available() or distributed.is_initialized():
        yield Processes()
        return
    try:
        distributed.init_process_group("gloo")
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"WORLD_SIZE is {number}, and the processes do not find each other ({brief(error)}). "
            "Accepted: what torchrun sets. Start them with torchrun, or unset WORLD_SIZE."
        ) from error
    try:
        yield Processes()
    finally:
        distributed.destroy_process_group()


def local_index() -> int:
    """Place of this process among those of its machine, which is that of its accelerator."""
    word = os.environ.get("LOCAL_RANK", "0")
    return int(word) if word.isdigit() else 0
