"""The latent file: latents of many images in one safetensors file.

One float32 tensor (c, h, w) for each image, under the name of the image; the metadata holds

    format = "stepladder-latents"     format_version = "1"
    model         what encoded them, as it was named then
    fingerprint   of its encoder: latents fit every model whose encoder has the same one
    sizes         JSON object, image name -> [H, W], to which a decode crops
    sha256        of names and values, so that a damaged file is an error and never a worse picture

Any program that reads safetensors can read the latents: https://github.com/huggingface/safetensors
"""

import hashlib
import json
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from stepladder.errors import DataError
from stepladder.images import PathLike, write_atomically

__all__ = [
    "LATENTS_FORMAT",
    "LATENTS_VERSION",
    "LatentFile",
    "StoredLatent",
    "check_names",
    "read_latents",
    "write_latents",
]

LATENTS_FORMAT = "stepladder-latents"
LATENTS_VERSION = "1"
"""Rises with every change that older code could not read."""

_RESERVED = "__metadata__"


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredLatent:
    """The latent of one image."""

    name: str
    """Of the image, without folder and suffix; unique in a file."""
    latent: Float[Tensor, "c h w"]
    """Float32."""
    size: tuple[int, int]
    """(H, W) of the image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentFile:
    """What a latent file holds."""

    model: str
    """The model that encoded the images, as it was named then."""
    fingerprint: str
    """Of its encoder (`Tokenizer.fingerprint`)."""
    latents: tuple[StoredLatent, ...]
    """In the order of their names when read."""

    def check_fits(self, *, model: str, fingerprint: str, channels: int, stride: int) -> None:
        """Checks that a model can decode these latents.

        Args:
            model: Its name, for messages.
            fingerprint: Of its encoder.
            channels: c of its latents.
            stride: f, image side over latent side.

        Raises:
            DataError: If the latents came from another encoder, or one of them has another shape than its image asks.
        """
        for stored in self.latents:
            height, width = stored.size
            expected = (channels, -(-height // stride), -(-width // stride))
            if tuple(stored.latent.shape) != expected:
                raise DataError(
                    f"Latent '{stored.name}' has shape {tuple(stored.latent.shape)}; model '{model}' takes {expected} "
                    f"for its image of {width} x {height}. Name the model that encoded it ('{self.model}')."
                )
        if self.fingerprint != fingerprint:
            raise DataError(
                f"The latents come from another encoder (model '{self.model}', fingerprint {self.fingerprint}) than "
                f"that of model '{model}' ({fingerprint}). Name the model that encoded them, or encode again."
            )


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


def write_latents(path: PathLike, content: LatentFile, *, force: bool = False) -> None:
    """Writes a latent file, whole or not at all.

    Raises:
        DataError: If there are no latents, two have one name, or a name cannot be that of a file.
        OutputError: If `path` exists and `force` is not set, or it cannot be written.
    """
    check_names(stored.name for stored in content.latents)
    tensors = {stored.name: stored.latent.detach().to("cpu", torch.float32).contiguous() for stored in content.latents}
    if not tensors:
        raise DataError("There are no latents to write. Encode at least one image.")
    metadata = {
        "format": LATENTS_FORMAT,
        "format_version": LATENTS_VERSION,
        "model": content.model,
        "fingerprint": content.fingerprint,
        "sizes": json.dumps({stored.name: stored.size for stored in content.latents}),
        "sha256": _digest(tensors.items()),
    }
    blob = save(tensors, metadata=metadata)
    write_atomically(Path(path), lambda temporary: temporary.write_bytes(blob), force=force)


def read_latents(path: PathLike) -> LatentFile:
    """Reads a latent file, in the order of the names.

    Raises:
        DataError: If it cannot be read, is no latent file, is of another version, or is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    except OSError as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
        raise DataError(f"Cannot read latents {path}: {reason}. Check the path.") from error
    except (SafetensorError, ValueError) as error:
        raise DataError(
            f"Cannot read latents {path}: it is no safetensors file, or it is damaged ({error}). Encode again."
        ) from error
    if metadata.get("format") != LATENTS_FORMAT:
        raise DataError(f"{path} holds no latents of images. Accepted: what `stepladder encode` writes.")
    if metadata.get("format_version") != LATENTS_VERSION:
        raise DataError(
            f"{path} has format version {metadata.get('format_version')}. Accepted: {LATENTS_VERSION}. "
            "Use the release of stepladder that wrote it, or encode again."
        )
    try:
        return _content(metadata, tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"Latents {path} are damaged ({error}). Encode the images again.") from error


def _content(metadata: dict[str, str], tensors: dict[str, Tensor]) -> LatentFile:
    if _digest(tensors.items()) != metadata["sha256"]:
        raise ValueError("their SHA-256 is not the one in the file")
    sizes = json.loads(metadata["sizes"])
    if not tensors or set(sizes) != set(tensors):
        raise ValueError("names and sizes do not belong together")
    latents = []
    for name, latent in tensors.items():
        height, width = sizes[name]
        if not _is_plain(name) or latent.dtype != torch.float32 or not (_is_side(height) and _is_side(width)):
            raise ValueError(f"odd name, values or size of {name!r}")
        latents.append(StoredLatent(name=name, latent=latent, size=(height, width)))
    return LatentFile(model=metadata["model"], fingerprint=metadata["fingerprint"], latents=tuple(latents))


def _digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _is_plain(name: str) -> bool:
    """Whether a name can be that of a file in a folder: a decode writes there, and nowhere else."""
    if name in ("", ".", "..", _RESERVED) or any(character in "/\\" for character in name):
        return False
    return not any(unicodedata.category(character) in ("Cc", "Cs") for character in name)  # control, not text


def _is_side(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
