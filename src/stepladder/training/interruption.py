"""Ctrl-C and SIGTERM in a run: the current step ends, a checkpoint is written, then the signal takes effect.

The first signal is only noted. A second one ends the process at once, as usual.
"""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import distributed

__all__ = ["Interruption"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """While it is open, signals that end a process are noted; at its end, one that was noted takes effect.

    Outside of the main thread, where Python handles no signals, it does nothing.
    """

    def __init__(self) -> None:
        self._noted = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._restore()
        if self._noted and kind is None:
            signal.raise_signal(self._noted)

    def noted(self, device: torch.device) -> str | None:
        """Name of the signal that any process has got; all processes answer the same."""
        if distributed.is_available() and distributed.is_initialized():
            number = torch.tensor(self._noted, device=device)
            distributed.all_reduce(number, op=distributed.ReduceOp.MAX)
            self._noted = int(number)
        return signal.Signals(self._noted).name if self._noted else None

    def _note(self, number: int, _: FrameType | None) -> None:
        self._noted = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
