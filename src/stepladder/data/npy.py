"""Arrays in the format .npy.

Reference: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from stepladder.errors import DataError, ImageError
from stepladder.files import reason

__all__ = ["from_npy", "read_latent_array", "to_npy"]


def from_npy(data: bytes, key: str) -> NDArray[Any]:
    """The array in the bytes of a .npy file; nothing in it is executed.

    Raises:
        ImageError: If they are none.
    """
    if not data.startswith(np.lib.format.MAGIC_PREFIX):
        raise ImageError(
            f"Latent of {key} is no array: it does not begin as a .npy file. Accepted: the bytes of a .npy file of "
            "floats. Store it so."
        )
    try:
        return np.asarray(np.load(io.BytesIO(data), allow_pickle=False))
    except (ValueError, EOFError, OSError) as error:
        said = str(error).partition(" when allow_pickle")[0].rstrip(".")  # which nobody can pass here
        raise ImageError(
            f"Latent of {key} is no array: {said}. Accepted: the bytes of a .npy file of floats. Store it so."
        ) from error


def read_latent_array(path: Path) -> Float[Tensor, "b c h w"]:
    """Latents in a .npy file: one (c, h, w), or several (B, c, h, w).

    Raises:
        DataError: If it cannot be read, or holds something else.
    """
    try:
        values = from_npy(path.read_bytes(), path.name)
    except OSError as error:
        raise DataError(f"Cannot read latents {path}: {reason(error)}. Check the path.") from error
    except ImageError as error:
        raise DataError(str(error)) from error
    if values.ndim not in (3, 4) or values.dtype.kind != "f" or not values.size:
        raise DataError(
            f"{path} holds an array of shape {values.shape} and type {values.dtype}. Accepted: floats (c, h, w) or "
            "(B, c, h, w). Store the latents so."
        )
    latent = torch.from_numpy(values.astype(np.float32))
    if not latent.isfinite().all():
        raise DataError(f"Latents {path} hold NaN or infinity. Latents are finite numbers. Make them again.")
    return latent if latent.ndim == 4 else latent[None]


def to_npy(array: NDArray[Any]) -> bytes:
    """The bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
