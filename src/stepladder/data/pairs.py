"""Images and their latents from files: nothing is encoded.

    Parquet       an image column and a column `latent`: bytes of a .npy file, or nested lists (c, h, w)
    WebDataset    NAME.jpg (or another image) and NAME.npy

A latent (c, h, w) belongs to an image (H, W) at a side ratio f: h = ceil(H / f), w = ceil(W / f). A training crop is a
window of whole cells: the same part of the image and of the latent, at the same scale, never mirrored, because no
encoder maps a mirrored image to the mirrored latent.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from stepladder.data.files import read_bytes
from stepladder.data.npy import from_npy
from stepladder.data.source import find_files
from stepladder.data.tar import tar_members
from stepladder.errors import DataError, ImageError
from stepladder.images import is_image_name, load_image, to_tensor

__all__ = [
    "CodedImage",
    "CodedImages",
    "PairSource",
    "check_window",
    "evaluation_pairs",
    "open_pairs",
    "random_window",
    "read_pair",
    "stack_pairs",
]


class CodedImage(NamedTuple):
    """An image and its raw latent."""

    image: Float[Tensor, "3 H W"]
    latent: Float[Tensor, "c h w"]


@dataclass(frozen=True, slots=True)
class CodedImages:
    """A batch of images and their raw latents."""

    images: Float[Tensor, "b 3 H W"]
    """In [-1, 1]."""
    latents: Float[Tensor, "b c h w"]
    """Raw output of the encoder."""

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.images.device

    def to(self, device: torch.device) -> CodedImages:
        """The same on another device, images channels last."""
        moved = self.images.to(device, memory_format=torch.channels_last, non_blocking=True)
        return CodedImages(moved, self.latents.to(device, non_blocking=True))

    def pin_memory(self) -> CodedImages:
        """The same in memory that a device copies from beside its work; a loader calls it."""
        return CodedImages(self.images.pin_memory(), self.latents.pin_memory())

    def __getitem__(self, part: slice) -> CodedImages:
        return CodedImages(self.images[part], self.latents[part])

    def __len__(self) -> int:
        return self.images.shape[0]


@runtime_checkable
class PairSource(Protocol):
    """Images and latents, at random access. Sources hold no open files and can be pickled."""

    name: str
    """What messages and reports call the source."""
    fingerprints: dict[str, list[float]]
    """Of the encoders that made the latents, by file; of files that say it."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """The encoded image. Raises `ImageError` if it cannot be read."""
        ...

    def read_latent(self, index: int) -> NDArray[Any]:
        """The latent, (c, h, w). Raises `ImageError` if it cannot be read."""
        ...

    def key(self, index: int) -> str:
        """A name for the pair."""
        ...


def open_pairs(data: str | Sequence[str]) -> PairSource:
    """Opens images with latents beside them.

    Args:
        data: Paths and patterns of Parquet files or of tar shards.

    Raises:
        DataError: If nothing is there, it holds no latents, or it cannot be read.
        MissingDependencyError: If a package that this kind of data needs is not installed.
    """
    paths, kind, name = find_files(data)
    match kind:
        case "Parquet files":
            from stepladder.data.parquet import ParquetPairs

            return ParquetPairs(paths, name=name)
        case "tar shards":
            return TarPairs(paths, name=name)
        case _:
            raise DataError(
                f"The data names {kind}, which hold no latents: '{name}'. Accepted with data.latents = true: Parquet "
                "files with a column 'latent', or tar shards with NAME.npy beside NAME.jpg. Write them with "
                "'stepladder cache', or set data.latents to false."
            )


def read_pair(source: PairSource, index: int, stride: int) -> CodedImage:
    """An image and its latent, checked to belong together.

    Raises:
        ImageError: If one of them cannot be read, the latent is not finite, or it has another side ratio.
    """
    key = source.key(index)
    image = to_tensor(load_image(source.read(index), name=key))
    values = source.read_latent(index)
    if values.ndim != 3 or values.dtype.kind != "f":
        raise ImageError(
            f"Latent of {key} has shape {values.shape} and type {values.dtype}. Accepted: floats (c, h, w). "
            "Store it so."
        )
    latent = torch.from_numpy(values.astype(np.float32))
    if not latent.isfinite().all():
        raise ImageError(f"Latent of {key} holds NaN or infinity. Latents are finite numbers. Encode the image again.")
    height, width = image.shape[1:]
    expected = (-(-height // stride), -(-width // stride))
    if tuple(latent.shape[1:]) != expected:
        raise ImageError(
            f"Latent of {key} has {latent.shape[1]} x {latent.shape[2]} cells for an image of {height} x {width}. "
            f"A side ratio of {stride} makes {expected[0]} x {expected[1]}. Set tokenizer.encoder.stride, or store the "
            "image that was encoded."
        )
    return CodedImage(image, latent)


def check_window(pair: CodedImage, side: int) -> None:
    """Checks that a window fits into an image.

    Raises:
        ImageError: If the image is smaller.
    """
    height, width = pair.image.shape[1:]
    if min(height, width) < side:
        raise ImageError(
            f"An image of {width} x {height} with its latent is smaller than the crop, {side} x {side}. It cannot be "
            "enlarged. Set data.crop.size to less."
        )


def random_window(pair: CodedImage, side: int, stride: int, generator: np.random.Generator) -> CodedImage:
    """A random window of whole cells, `side` pixels wide and high, of an image that is as large."""
    u_top, u_left = generator.random(2)
    cells = side // stride
    rows, columns = (extent // stride - cells + 1 for extent in pair.image.shape[1:])
    return _window(pair, int(u_top * rows), int(u_left * columns), cells, stride)


def evaluation_pairs(source: PairSource, *, side: int, stride: int, limit: int) -> list[CodedImage]:
    """The first pairs of a source, each cut to the window of whole cells in its middle.

    Raises:
        DataError: If no image is readable and as large.
    """
    found: list[CodedImage] = []
    first: ImageError | None = None
    for index in range(len(source)):
        if len(found) == limit:
            break
        try:
            pair = read_pair(source, index, stride)
            check_window(pair, side)
        except ImageError as error:
            first = first or error
            continue
        cells = side // stride
        top, left = ((extent // stride - cells) // 2 for extent in pair.image.shape[1:])
        found.append(_window(pair, top, left, cells, stride))
    if not found:
        raise DataError(
            f"None of the {len(source)} images of {source.name} can be used. At least one is needed; the first failed "
            f"so: {first} Check the data."
        )
    return found


def _window(pair: CodedImage, top: int, left: int, cells: int, stride: int) -> CodedImage:
    y, x, side = top * stride, left * stride, cells * stride
    return CodedImage(pair.image[:, y : y + side, x : x + side], pair.latent[:, top : top + cells, left : left + cells])


def stack_pairs(pairs: Sequence[CodedImage]) -> CodedImages:
    """A batch of pairs of one size.

    Raises:
        DataError: If latents have different numbers of channels.
    """
    channels = {pair.latent.shape[0] for pair in pairs}
    if len(channels) != 1:
        raise DataError(
            f"Latents have {' and '.join(map(str, sorted(channels)))} channels. Those of one encoder have one number. "
            "Name files of one encoder."
        )
    return CodedImages(torch.stack([pair.image for pair in pairs]), torch.stack([pair.latent for pair in pairs]))


class TarPairs:
    """The images in tar shards that have a latent of the same name beside them.

    Args:
        paths: Tar files.
        name: What messages and reports call the source.

    Raises:
        DataError: If a shard cannot be read, or there is no image with a latent.
    """

    def __init__(self, paths: Sequence[Path], *, name: str) -> None:
        self.name = name
        self.fingerprints: dict[str, list[float]] = {}
        self._pairs: list[tuple[_Member, _Member]] = []
        for path in paths:
            self._pairs += _pairs_of(path, tar_members(path))
        if not self._pairs:
            raise DataError(
                f"No images with latents in {name}. Members NAME.jpg and NAME.npy make a pair. Check the shards with "
                "'tar tf'."
            )

    def __len__(self) -> int:
        return len(self._pairs)

    def read(self, index: int) -> bytes:
        """The bytes of the image."""
        return self._pairs[index][0].read()

    def read_latent(self, index: int) -> NDArray[Any]:
        """The latent."""
        member = self._pairs[index][1]
        return from_npy(member.read(), member.key)

    def key(self, index: int) -> str:
        """The name of the image in its shard."""
        return self._pairs[index][0].key


class _Member(NamedTuple):
    """A file in a shard."""

    shard: Path
    key: str
    offset: int
    size: int

    def read(self) -> bytes:
        return read_bytes(self.shard, key=self.key, offset=self.offset, size=self.size)


def _pairs_of(shard: Path, members: Sequence[tarfile.TarInfo]) -> Iterator[tuple[_Member, _Member]]:
    found = {member.name: _Member(shard, member.name, member.offset_data, member.size) for member in members}
    for name, member in found.items():
        latent = found.get(str(PurePosixPath(name).with_suffix(".npy")))
        if is_image_name(name) and latent is not None:
            yield member, latent
