"""Arrays in the format .npy.

Reference: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepladder.errors import ImageError

__all__ = ["from_npy", "to_npy"]


def from_npy(data: bytes, key: str) -> NDArray[Any]:
    """The array in the bytes of a .npy file; nothing in it is executed.

    Raises:
        ImageError: If they are none.
    """
    try:
        return np.asarray(np.load(io.BytesIO(data), allow_pickle=False))
    except (ValueError, EOFError, OSError) as error:
        raise ImageError(
            f"Latent of {key} is no array: {error}. Accepted: the bytes of a .npy file of floats. Store it so."
        ) from error


def to_npy(array: NDArray[Any]) -> bytes:
    """The bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
