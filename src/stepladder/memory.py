"""Freed memory of the C library, and recognising its exhaustion.

glibc gives large blocks back to the system as soon as they are free, and asks for fresh ones at the next allocation;
the system clears each page of those when it is first touched. Networks free and allocate the same large tensors again
and again, so that on a CPU up to half of the time goes into clearing pages. A process that keeps what it freed does not
pay for that, and holds as much as it ever needed at once.

Reference: mallopt(3), M_MMAP_THRESHOLD and M_TRIM_THRESHOLD, https://man7.org/linux/man-pages/man3/mallopt.3.html
"""

import ctypes
import os

__all__ = ["is_out_of_memory", "keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST = 2**31 - 1
"""An int; blocks that are larger still are given back."""
_SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Makes this process keep freed memory for its next allocations; for programs, not for libraries.

    Returns:
        Whether it does: False where the C library is another one, or the environment says what it shall do.
    """
    if any(name in os.environ for name in _SETTINGS):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return all(mallopt(option, _LARGEST) == 1 for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, a device or the CPU allocator of torch ran out of memory."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"MemoryError", "OutOfMemoryError"}) or "can't allocate memory" in str(error)
