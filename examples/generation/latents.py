"""The images of a labelled data set as latents, encoded once: the file on which a prior trains.

One safetensors file holds `latents` (V, M, N, D) in float16, V = 1 or 2 views of each of M images (as it is, and
mirrored), and `labels` (M,); its metadata names the encoder.
"""

import glob
from collections.abc import Callable, Iterator
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
from stepladder.layouts import TokenLayout

__all__ = ["LabelledLatents", "batches", "encode", "open_labelled", "read_latents", "token_layout", "write_latents"]

_FORMAT = "stepladder-example-labelled-latents"


@dataclass(frozen=True, kw_only=True)
class LabelledLatents:
    """Latents of images whose classes are known."""

    latents: Float[Tensor, "v m n d"]
    """Views of each image; float16."""
    labels: Int[Tensor, " m"]
    """Class of each image, as the data numbers it."""
    fingerprint: str
    """Of the encoder."""


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


def token_layout(tokenizer: Tokenizer) -> TokenLayout:
    """The layout of a tokenizer whose latents are tokens.

    Raises:
        ConfigError: If they are not.
    """
    if not isinstance(tokenizer.layout, TokenLayout):
        raise ConfigError(
            f"Latents of a model are grids ({tokenizer.layout}). Accepted: models whose latents are tokens. Name one, "
            "for example models/imagenet64."
        )
    return tokenizer.layout


def encode(
    tokenizer: Tokenizer,
    source: ImageSource,
    labels: list[int],
    *,
    mirrored: bool,
    batch: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> LabelledLatents:
    """Encodes all images, and if `mirrored` also their mirror images."""
    layout = token_layout(tokenizer)
    views = 2 if mirrored else 1
    latents = torch.empty(views, len(labels), layout.tokens, layout.channels, dtype=torch.float16)
    done = 0
    for images in batches(source, layout.side, batch):
        images = images.to(tokenizer.device)
        for view in range(views):
            found = tokenizer.encode(images.flip(-1) if view else images).latent
            latents[view, done : done + len(images)] = found.to("cpu", torch.float16)
        done += len(images)
        if on_progress:
            on_progress(done, len(labels))
    return LabelledLatents(latents=latents, labels=torch.tensor(labels), fingerprint=tokenizer.fingerprint())


def write_latents(content: LabelledLatents, path: Path, *, force: bool = False) -> None:
    """Writes the file, whole or not at all.

    Raises:
        OutputError: If it exists and `force` is not set, or cannot be written.
    """
    tensors = {"latents": content.latents.contiguous(), "labels": content.labels}
    metadata = {"format": _FORMAT, "fingerprint": content.fingerprint}
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
                fingerprint=metadata["fingerprint"],
            )
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise DataError(
            f"Cannot read latents {path}: {error}. Accepted: what 'encode' writes. Encode again, or check the path."
        ) from error
