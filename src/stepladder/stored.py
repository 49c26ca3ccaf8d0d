"""The latent file: latents of many images in one safetensors file.

One tensor for each image, under the name of the image. A model with a continuous latent stores the latent in float32,
(c, h, w) or (N, D); a model with a quantised one stores the indices of its codes, (h, w) or (N,), in the smallest of
uint8, uint16 and int32 that holds the codebook. The metadata holds

    format = "stepladder-latents"
    format_version = "3"
    model           name of the model that encoded them
    fingerprint     of its encoder: latents fit every model whose encoder has the same one
    codebook_size   K, where indices are stored: they are 0 .. K - 1
    sizes           JSON object, image name -> [H, W], to which a decode crops
    sha256          of names, values and all of the above, so that a damaged file is an error instead of a bad picture

Versions 1 (latents) and 2 (indices) are read as well; their hash is of names and values alone.

Any program that reads safetensors can read the latents: https://github.com/huggingface/safetensors
"""

import hashlib
import json
import math
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from stepladder.errors import DataError
from stepladder.files import PathLike, parse_json, write_atomically

__all__ = [
    "LATENTS_FORMAT",
    "LATENTS_VERSION",
    "Content",
    "Stored",
    "check_names",
    "index_dtype",
    "read_content",
    "value_bits",
    "write_content",
]

LATENTS_FORMAT = "stepladder-latents"
LATENTS_VERSION = "3"
"""Of the files that are written. Rises with every change that older code could not read."""

_UNPROTECTED = ("1", "2")
"""Versions whose hash leaves the metadata out."""
_RESERVED = "__metadata__"


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """The latent of one image in a file."""

    name: str
    """Of the image, without folder and suffix; unique in a file."""
    values: NDArray[Any]
    """A latent (c, h, w) or (N, D) in float32, or code indices (h, w) or (N,), any integers."""
    size: tuple[int, int]
    """(H, W) of the image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Content:
    """The content of a latent file."""

    model: str
    """Name of the model that encoded the images."""
    fingerprint: str
    """Of its encoder."""
    codebook_size: int | None
    """Number of codes, where the values are indices; None where they are latents."""
    latents: tuple[Stored, ...]
    """In the order of their names when read."""


def value_bits(codebook_size: int | None) -> float:
    """Bits of one value of a latent, 32, or of one index, log2 of the codebook's size.

    The second is what a perfect packing would take, a little less than the file.
    """
    return 32 if codebook_size is None else math.log2(codebook_size)


def index_dtype(codebook_size: int) -> type[np.integer[Any]]:
    """The smallest of uint8, uint16 and int32 that holds the indices of a codebook."""
    return next(kind for kind in (np.uint8, np.uint16, np.int32) if codebook_size - 1 <= np.iinfo(kind).max)


def check_names(names: Iterable[str]) -> None:
    """Checks that images can be stored under their names.

    Raises:
        DataError: If two have one name, or a name cannot be that of a file.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DataError(f"Two latents have the name '{name}'. A file takes each name once: rename an image.")
        if not _is_plain(name):
            raise DataError(f"Latent name {name!r} cannot be stored. Rename the image to a plain file name.")
        seen.add(name)


def write_content(path: PathLike, content: Content, *, force: bool = False) -> None:
    """Writes a latent file, whole or not at all.

    Raises:
        DataError: If there are no latents, two have one name, a name cannot be that of a file, a latent is not finite,
            or an index is no code.
        OutputError: If `path` exists and `force` is not set, or it cannot be written.
    """
    check_names(stored.name for stored in content.latents)
    if not content.latents:
        raise DataError("There are no latents to write. Encode at least one image.")
    size = content.codebook_size
    if size is not None and (odd := _first_outside(content.latents, size)):
        raise DataError(f"Cannot store latents: {odd}. The model's weights are damaged: use another copy of it.")
    for stored in content.latents:
        if not np.isfinite(stored.values).all():
            raise DataError(f"Latent '{stored.name}' holds NaN or infinity. Latents are finite. Encode it again.")
    dtype = _dtype(size)
    arrays = {stored.name: np.ascontiguousarray(stored.values, dtype=dtype) for stored in content.latents}
    metadata = {
        "format": LATENTS_FORMAT,
        "format_version": LATENTS_VERSION,
        "model": content.model,
        "fingerprint": content.fingerprint,
        **({} if size is None else {"codebook_size": str(size)}),
        "sizes": json.dumps({stored.name: stored.size for stored in content.latents}),
    }
    blob = save(arrays, metadata={**metadata, "sha256": _digest(arrays, metadata)})
    write_atomically(Path(path), lambda temporary: temporary.write_bytes(blob), force=force)


def read_content(path: PathLike) -> Content:
    """Reads a latent file, in the order of the names; indices come back as int64.

    Raises:
        DataError: If it cannot be read, is no latent file, is of another version, or is damaged.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in sorted(file.keys())}
    except OSError as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
        raise DataError(f"Cannot read latents {path}: {reason}. Check the path.") from error
    except (SafetensorError, ValueError) as error:
        raise DataError(
            f"Cannot read latents {path}: it is no safetensors file, or it is damaged ({error}). Encode again."
        ) from error
    if metadata.get("format") != LATENTS_FORMAT:
        raise DataError(f"{path} holds no latents of images. Accepted: what `stepladder encode` writes.")
    if metadata.get("format_version") not in (*_UNPROTECTED, LATENTS_VERSION):
        raise DataError(
            f"{path} has format version {metadata.get('format_version')}. "
            f"Accepted: {', '.join(_UNPROTECTED)} and {LATENTS_VERSION}. "
            "Use the release of stepladder that wrote it, or encode again."
        )
    try:
        return _content(metadata, arrays)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"Latents {path} are damaged ({error}). Encode the images again.") from error


def _content(metadata: dict[str, str], arrays: dict[str, NDArray[Any]]) -> Content:
    if _digest(arrays, metadata) != metadata["sha256"]:
        raise ValueError("their SHA-256 is not the one in the file")
    codebook_size = _codebook_size(metadata)
    dtype = _dtype(codebook_size)
    sizes = parse_json(metadata["sizes"])
    if not arrays or set(sizes) != set(arrays):
        raise ValueError("names and sizes do not belong together")
    latents = []
    for name, values in arrays.items():
        height, width = sizes[name]
        if not _is_plain(name) or values.dtype != dtype or not (_is_side(height) and _is_side(width)):
            raise ValueError(f"odd name, values or size of {name!r}")
        if not np.isfinite(values).all():
            raise ValueError(f"{name!r} holds NaN or infinity")
        values = values if codebook_size is None else values.astype(np.int64)
        latents.append(Stored(name=name, values=values, size=(height, width)))
    if codebook_size is not None and (odd := _first_outside(latents, codebook_size)):
        raise ValueError(odd)
    return Content(
        model=metadata["model"],
        fingerprint=metadata["fingerprint"],
        codebook_size=codebook_size,
        latents=tuple(latents),
    )


def _dtype(codebook_size: int | None) -> type[np.generic]:
    return np.float32 if codebook_size is None else index_dtype(codebook_size)


def _codebook_size(metadata: dict[str, str]) -> int | None:
    if "codebook_size" not in metadata:
        return None
    size = int(metadata["codebook_size"])
    if not 0 < size <= np.iinfo(np.int32).max:
        raise ValueError(f"odd codebook size {size}")
    return size


def _first_outside(latents: Iterable[Stored], codebook_size: int) -> str | None:
    """What is wrong with the first index that is no code, if one is."""
    for stored in latents:
        indices = stored.values
        outside = indices[(indices < 0) | (indices >= codebook_size)]
        if outside.size:
            return f"index {int(outside[0])} of '{stored.name}' is outside the codebook, 0 to {codebook_size - 1}"
    return None


def _digest(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name}\0{tuple(array.shape)}\0".encode())
        digest.update(array.tobytes())
    if metadata["format_version"] not in _UNPROTECTED:
        protected = {key: value for key, value in metadata.items() if key != "sha256"}
        digest.update(json.dumps(protected, sort_keys=True).encode())
    return digest.hexdigest()


def _is_plain(name: str) -> bool:
    """Whether a name can be that of a file in a folder: a decode writes there, and nowhere else."""
    if name in ("", ".", "..", _RESERVED) or any(character in "/\\" for character in name):
        return False
    return not any(unicodedata.category(character) in ("Cc", "Cs") for character in name)  # control, not text


def _is_side(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
