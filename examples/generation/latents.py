"""The images of a labelled data set as latents, encoded once: the file on which a prior trains.

A prior works on tokens. Those of a latent (N, D) are its own; those of a grid (c, h, w) are its h w places, row by row,
with c channels each.

One safetensors file holds `latents` (V, M, N, D) in float16, V = 1 or 2 views of each of M images (as it is, and
mirrored), and `labels` (M,); its metadata names the encoder, the side of the images and the shape of a latent.
"""

import glob
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stepladder import Tokenizer
from stepladder.data import ImageSource, open_source
from stepladder.errors import ConfigError, DataError
from stepladder.files import write_atomically
from stepladder.images import centre_crop_resize, load_image, to_tensor
from stepladder.layouts import TokenLayout, check_side

__all__ = [
    "LabelledLatents",
    "batches",
    "encode",
    "from_tokens",
    "open_labelled",
    "read_latents",
    "to_tokens",
    "write_latents",
]

_FORMAT = "stepladder-example-labelled-latents"


@dataclass(frozen=True, kw_only=True)
class LabelledLatents:
    """Latents of images whose classes are known."""

    latents: Float[Tensor, "v m n d"]
    """Views of each image; float16."""
    labels: Int[Tensor, " m"]
    """Class of each image, as the data numbers it."""
    shape: tuple[int, ...]
    """Of one latent, as the tokenizer has it: (N, D) or (c, h, w)."""
    side: int
    """Of the images, in pixels."""
    fingerprint: str
    """Of the encoder."""


def to_tokens(latents: Float[Tensor, "b ..."]) -> Float[Tensor, "b n d"]:
    """Latents of a tokenizer as tokens."""
    return latents if latents.ndim == 3 else latents.flatten(2).transpose(1, 2)


def from_tokens(tokens: Float[Tensor, "b n d"], shape: Sequence[int]) -> Float[Tensor, "b ..."]:
    """The inverse, for latents of a shape (N, D) or (c, h, w)."""
    return tokens if len(shape) == 2 else tokens.transpose(1, 2).unflatten(2, tuple(shape[1:]))


def open_labelled(pattern: str) -> tuple[ImageSource, list[int]]:
    """Images and labels of Parquet files with an image column and a column `label`, as the Hugging Face hub has them.

    Raises:
        DataError: If there are no such files, or one of them has no labels.
    """
    paths = sorted(glob.glob(pattern))  # noqa: PTH207 - the pattern may be absolute
    if not paths or not all(path.endswith(".parquet") for path in paths):
        raise DataError(f"No labelled images at '{pattern}'. Accepted: Parquet files, or a quoted pattern of them.")
    source, labels = open_source(paths), []
    for path in paths:
        try:
            labels += [int(label) for label in pq.read_table(path, columns=["label"])["label"].to_pylist()]
        except (KeyError, TypeError, ValueError, pa.ArrowException) as error:
            raise DataError(f"{path} has no whole numbers in a column 'label'. Name the classes there.") from error
    return source, labels


def batches(source: ImageSource, side: int, size: int, limit: int | None = None) -> Iterator[Float[Tensor, "b 3 s s"]]:
    """The images in their order, `size` at a time, cut to squares of `side` pixels.

    Raises:
        ImageError: If one of them cannot be read.
    """
    count = len(source) if limit is None else min(limit, len(source))
    for start in range(0, count, size):
        images = (load_image(source.read(i), name=source.key(i)) for i in range(start, min(start + size, count)))
        yield torch.stack([to_tensor(centre_crop_resize(image, side)) for image in images])


def encode(
    tokenizer: Tokenizer,
    source: ImageSource,
    labels: list[int],
    *,
    side: int | None,
    mirrored: bool,
    batch: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> LabelledLatents:
    """Encodes all images, and if `mirrored` also their mirror images.

    Args:
        tokenizer: The frozen one.
        source: The images.
        labels: Their classes.
        side: To which they are cut; None for the one side that the tokenizer takes.
        mirrored: Whether there are two views of each.
        batch: Images at once.
        on_progress: Called with the images done and their number.

    Raises:
        ConfigError: If the tokenizer takes another side only, or any and none is named.
        ImageError: If an image cannot be read.
    """
    side = _side(tokenizer, side)
    shape = tokenizer.layout.shape((side, side))
    tokens = to_tokens(torch.empty(1, *shape)).shape[1:]
    views = 2 if mirrored else 1
    latents = torch.empty(views, len(labels), *tokens, dtype=torch.float16)
    done = 0
    for images in batches(source, side, batch):
        images = images.to(tokenizer.device)
        for view in range(views):
            found = to_tokens(tokenizer.encode(images.flip(-1) if view else images).latent)
            latents[view, done : done + len(images)] = found.to("cpu", torch.float16)
        done += len(images)
        if on_progress:
            on_progress(done, len(labels))
    return LabelledLatents(
        latents=latents, labels=torch.tensor(labels), shape=shape, side=side, fingerprint=tokenizer.fingerprint()
    )


def _side(tokenizer: Tokenizer, side: int | None) -> int:
    """The side of the images: the one asked for, or the only one."""
    if side is not None:
        check_side(tokenizer.layout, side, "this model")
        return side
    if isinstance(tokenizer.layout, TokenLayout):
        return tokenizer.layout.side
    raise ConfigError("No image side is named, and the model takes any. Pass --size, for example --size 128.")


def write_latents(content: LabelledLatents, path: Path, *, force: bool = False) -> None:
    """Writes the file, whole or not at all.

    Raises:
        OutputError: If it exists and `force` is not set, or cannot be written.
    """
    tensors = {"latents": content.latents.contiguous(), "labels": content.labels}
    metadata = {
        "format": _FORMAT,
        "fingerprint": content.fingerprint,
        "shape": json.dumps(content.shape),
        "side": str(content.side),
    }
    write_atomically(path, lambda place: save_file(tensors, place, metadata=metadata), force=force)


def read_latents(path: Path) -> LabelledLatents:
    """Reads the file.

    Raises:
        DataError: If it cannot be read, or holds something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise ValueError("it is a file of another kind")
            return LabelledLatents(
                latents=file.get_tensor("latents"),
                labels=file.get_tensor("labels"),
                shape=tuple(json.loads(metadata["shape"])),
                side=int(metadata["side"]),
                fingerprint=metadata["fingerprint"],
            )
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise DataError(
            f"Cannot read latents {path}: {error}. Accepted: what 'encode' writes. Encode again, or check the path."
        ) from error
