"""What a worker is handed, and what it hands back. Workers raise nothing: a failure is a value."""

import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, Protocol, TypeAlias, TypeVar

import torch

from stepladder.bulk.manifest import Entry
from stepladder.bulk.options import DecodeOptions, EncodeOptions
from stepladder.bulk.store import Store
from stepladder.data.pieces import Piece
from stepladder.data.remote import RemoteError
from stepladder.errors import OutputError, StepladderError, one_line
from stepladder.memory import is_out_of_memory
from stepladder.tokenizer import Tokenizer

__all__ = ["Failure", "Job", "ModelJob", "Outcome", "attempt", "begin"]

Options = TypeVar("Options", EncodeOptions, DecodeOptions)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A shard that could not be made."""

    shard: str
    why: str
    """One line."""
    again: bool = False
    """Whether another try may do."""
    fatal: bool = False
    """Whether all other shards would fail alike: the disk is full, memory is short."""
    trace: str | None = None
    """Of an error that nobody foresaw."""


Outcome: TypeAlias = Entry | Failure


class Job(Protocol):
    """What all shards have in common. It can be pickled."""

    @property
    def threads(self) -> int:
        """Of torch, in a worker."""
        ...

    @property
    def device(self) -> str:
        """Kind of device."""
        ...

    def start(self, worker: int) -> Callable[[Piece], Outcome]:
        """Loads the model; the function that then makes shards."""
        ...


@dataclass(frozen=True, kw_only=True)
class ModelJob(Generic[Options]):
    """A job of one model."""

    model: str
    options: Options
    store: Store
    maker: Callable[[Tokenizer, Options, Store], Callable[[Piece], Entry]]
    """What makes shards, one after the other."""

    @property
    def threads(self) -> int:
        """Of torch, in a worker."""
        return self.options.threads

    @property
    def device(self) -> str:
        """Kind of device."""
        return self.options.device

    def start(self, worker: int) -> Callable[[Piece], Outcome]:
        """Loads the model; the function that then makes shards."""
        torch.set_num_threads(self.threads)
        count = torch.cuda.device_count() if self.device == "cuda" else 0
        place = f"cuda:{worker % count}" if count else self.device
        tokenizer = Tokenizer.from_pretrained(self.model, device=place)
        return partial(attempt, self.maker(tokenizer, self.options, self.store))


def begin(job: Job, worker: int) -> Callable[[Piece], Outcome]:
    """Starts a job; where it does not start, every shard is a failure that ends the run."""
    try:
        return job.start(worker)
    except Exception as error:
        failed = partial(_failure, error)
        return lambda piece: replace(failed(piece), again=False, fatal=True)


def attempt(make: Callable[[Piece], Entry], piece: Piece) -> Outcome:
    """Makes a shard; whatever goes wrong becomes a value."""
    try:
        return make(piece)
    except Exception as error:
        return _failure(error, piece)


def _failure(error: Exception, piece: Piece) -> Failure:
    why = one_line(error)
    if isinstance(error, RemoteError):
        return Failure(shard=piece.name, why=why, again=True)
    if isinstance(error, StepladderError):
        return Failure(shard=piece.name, why=why, fatal=isinstance(error, OutputError))
    if is_out_of_memory(error):
        why = "Not enough memory for a batch. Smaller batches are needed. Pass a smaller --batch and another output."
        return Failure(shard=piece.name, why=why, fatal=True)
    trace = "".join(traceback.format_exception(error))
    return Failure(shard=piece.name, why=why, fatal=True, trace=trace)
