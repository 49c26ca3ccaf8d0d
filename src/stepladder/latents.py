"""Latents of many images, and the file that holds them (`stepladder.stored`), as tensors."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Shaped
from numpy.typing import NDArray
from torch import Tensor

from stepladder import stored as files
from stepladder.errors import DataError, ImageError
from stepladder.files import PathLike
from stepladder.layouts import Layout
from stepladder.stored import LATENTS_FORMAT, LATENTS_VERSION, check_names, value_bits

__all__ = [
    "LATENTS_FORMAT",
    "LATENTS_VERSION",
    "LatentFile",
    "StoredLatent",
    "check_names",
    "index_dtype",
    "read_latents",
    "value_bits",
    "write_latents",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredLatent:
    """The latent of one image."""

    name: str
    """Of the image, without folder and suffix; unique in a file."""
    values: Shaped[Tensor, "..."]
    """A latent (c, h, w) or (N, D), or code indices (h, w) or (N,)."""
    size: tuple[int, int]
    """(H, W) of the image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentFile:
    """The content of a latent file."""

    model: str
    """Name of the model that encoded the images."""
    fingerprint: str
    """Of its encoder (`Tokenizer.fingerprint`)."""
    codebook_size: int | None = None
    """Number of codes, where the values are indices; None where they are latents."""
    latents: tuple[StoredLatent, ...]
    """In the order of their names when read."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of stored values."""
        return torch.float32 if self.codebook_size is None else index_dtype(self.codebook_size)

    def stored_bytes(self, stored: StoredLatent) -> int:
        """Size of one of the latents in the file."""
        return stored.values.numel() * self.dtype.itemsize

    def bits_per_pixel(self, stored: StoredLatent) -> float:
        """Bits of one of the latents over the pixels of its image (`value_bits`)."""
        return stored.values.numel() * value_bits(self.codebook_size) / math.prod(stored.size)

    def check_fits(self, *, model: str, fingerprint: str, layout: Layout, codebook_size: int | None = None) -> None:
        """Checks that a model can decode these latents.

        Args:
            model: Its name, for messages.
            fingerprint: Of its encoder.
            layout: Of its latents.
            codebook_size: Number of its codes, if it is quantised.

        Raises:
            DataError: If the latents came from another encoder or codebook, or the shape of one of them is not that of
                the model for its image.
        """
        if self.codebook_size != codebook_size:
            raise DataError(
                f"The file holds {_content_name(self.codebook_size)}; model '{model}' takes "
                f"{_content_name(codebook_size)}. Name the model that encoded it ('{self.model}')."
            )
        for stored in self.latents:
            height, width = stored.size
            try:
                layout.check_size(stored.size)
            except ImageError as error:
                raise DataError(
                    f"Latent '{stored.name}' is of an image of {width} x {height}, a size that model '{model}' does "
                    f"not take. Name the model that encoded it ('{self.model}')."
                ) from error
            expected = layout.shape(stored.size)
            if codebook_size is not None:
                expected = _without_channels(expected)
            if tuple(stored.values.shape) != expected:
                raise DataError(
                    f"Latent '{stored.name}' has shape {tuple(stored.values.shape)}; model '{model}' takes {expected} "
                    f"for its image of {width} x {height}. Name the model that encoded it ('{self.model}')."
                )
        if self.fingerprint != fingerprint:
            raise DataError(
                f"The latents come from another encoder (model '{self.model}', fingerprint {self.fingerprint}) than "
                f"that of model '{model}' ({fingerprint}). Name the model that encoded them, or encode again."
            )


def index_dtype(codebook_size: int) -> torch.dtype:
    """The smallest of uint8, uint16 and int32 that holds the indices of a codebook."""
    dtype: torch.dtype = getattr(torch, files.index_dtype(codebook_size).__name__)
    return dtype


def write_latents(path: PathLike, content: LatentFile, *, force: bool = False) -> None:
    """Writes a latent file, whole or not at all.

    Raises:
        DataError: If there are no latents, two have one name, a name cannot be that of a file, a latent is not finite,
            or an index is no code.
        OutputError: If `path` exists and `force` is not set, or it cannot be written.
    """
    latents = tuple(
        files.Stored(name=stored.name, values=_array(stored.values), size=stored.size) for stored in content.latents
    )
    known = {"model": content.model, "fingerprint": content.fingerprint, "codebook_size": content.codebook_size}
    files.write_content(path, files.Content(**known, latents=latents), force=force)  # type: ignore[arg-type]


def read_latents(path: PathLike) -> LatentFile:
    """Reads a latent file, in the order of the names; indices come back as int64.

    Raises:
        DataError: If it cannot be read, is no latent file, is of another version, or is damaged.
    """
    content = files.read_content(path)
    latents = tuple(
        StoredLatent(name=stored.name, values=torch.from_numpy(stored.values), size=stored.size)
        for stored in content.latents
    )
    return LatentFile(
        model=content.model, fingerprint=content.fingerprint, codebook_size=content.codebook_size, latents=latents
    )


def _array(values: Tensor) -> NDArray[Any]:
    """On the CPU; floats of any precision in single."""
    plain = values.detach().cpu()
    return (plain.float() if plain.is_floating_point() else plain).numpy()


def _content_name(codebook_size: int | None) -> str:
    return "latents" if codebook_size is None else f"indices of {codebook_size:,} codes"


def _without_channels(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(c, h, w) to (h, w), (N, D) to (N,)."""
    return shape[1:] if len(shape) == 3 else shape[:1]
