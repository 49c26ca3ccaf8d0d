"""Freed memory of the C library, and recognising its exhaustion.

glibc gives large blocks back to the system as soon as they are free, and asks for fresh ones at the next allocation;
the system clears each page of those when it is first touched. Networks free and allocate the same large tensors again
and again, so that on a CPU up to half of the time goes into clearing pages. A process that keeps what it freed does not
pay for that, and holds as much as it ever needed at once.

Reference: mallopt(3), M_MMAP_THRESHOLD and M_TRIM_THRESHOLD, https://man7.org/linux/man-pages/man3/mallopt.3.html
"""

import contextlib
import ctypes
import os

__all__ = ["give_back_freed_memory", "is_out_of_memory", "keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_KEPT = 2**26
"""Larger blocks are given back at once: whole images of over 5 megapixels as floats, and the widest features of a tile
of 1024, of which there are few. In one heap with the many that are smaller, these lie in their holes and it grows."""
_NEVER = 2**31 - 1
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
    return mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT) == 1 and mallopt(_M_TRIM_THRESHOLD, _NEVER) == 1


def give_back_freed_memory() -> None:
    """Gives back all that is free at present, also between what is in use: before work that needs other sizes."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library keeps free memory as it likes
        ctypes.CDLL(None).malloc_trim(0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, a device or the CPU allocator of torch ran out of memory."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"MemoryError", "OutOfMemoryError"}) or "can't allocate memory" in str(error)
