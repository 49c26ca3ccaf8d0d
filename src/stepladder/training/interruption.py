"""Ctrl-C and SIGTERM in a run: the current step ends, a checkpoint is written, then the signal takes effect.

The first signal is only noted. A second one ends the process at once, as usual.
"""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import distributed

from stepladder.processes import Processes

__all__ = ["Interruption"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """While it is open, signals that end a process are noted; at its end, one that was noted takes effect.

    Several processes ask each other on the CPU, and take the answer one step later: no step waits for it, and none for
    a device. Outside of the main thread, where Python handles no signals, it does nothing.
    """

    def __init__(self) -> None:
        self._noted = 0
        self._before: dict[int, Any] = {}
        self._group: Any = None
        self._asked: tuple[Any, torch.Tensor] | None = None

    def __enter__(self) -> "Interruption":
        if Processes().count > 1:
            self._group = distributed.new_group(backend="gloo")
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._restore()
        if self._asked is not None and kind is None:
            self._answer()
        if self._noted and kind is None:
            signal.raise_signal(self._noted)

    def noted(self) -> str | None:
        """Name of the signal that this process has got, or any of several when they were last asked; all answer alike.

        All processes call it equally often.
        """
        if self._group is None:
            return signal.Signals(self._noted).name if self._noted else None
        found = self._answer() if self._asked is not None else 0
        number = torch.tensor(self._noted)
        work = distributed.all_reduce(number, distributed.ReduceOp.MAX, group=self._group, async_op=True)
        self._asked = work, number
        return signal.Signals(found).name if found else None

    def _answer(self) -> int:
        """What the processes said, once all have."""
        assert self._asked is not None
        work, number = self._asked
        work.wait()
        self._asked = None
        found = int(number)
        self._noted = self._noted or found
        return found

    def _note(self, number: int, _: FrameType | None) -> None:
        self._noted = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
