"""Encoding once: the crops of a run and their raw latents, side by side in Parquet files.

Crop n is the n-th of the stream that training itself would draw with the same configuration, so that each pass over the
data holds every photograph once. Training then cuts smaller windows from them (`data.pairs`).

Each file is written whole or not at all, and says which crops it holds. So an interrupted cache goes on with the first
file that is missing.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from stepladder.configs import unstructure
from stepladder.data import CodedImages, TrainingCrops, evaluation_images, open_source
from stepladder.encoders import FrozenEncoder, FrozenEncoderConfig
from stepladder.encoders.fingerprint import TOLERANCE, distance
from stepladder.errors import ConfigError, OutputError
from stepladder.training.config import TrainConfig

__all__ = ["cache_latents"]

_ROWS = 256
"""Of a file."""
_ANY_SIDE = 256

Progress: TypeAlias = Callable[[int, int], None]


def cache_latents(
    config: TrainConfig,
    folder: Path,
    *,
    passes: int = 1,
    batch: int = 4,
    force: bool = False,
    device: torch.device | str = "cpu",
    on_progress: Progress = lambda _done, _total: None,
) -> list[Path]:
    """Writes `train-*.parquet`, and `validation-*.parquet` where the run has validation images.

    Files of the same crops and the same encoder that are there stay as they are, unless `force` is set.

    Args:
        config: The run. `data.crop` says how crops are cut; validation images are cut as evaluations cut them.
        folder: Made if it is missing.
        passes: How many crops of each photograph.
        batch: Crops that are encoded together; changes the time alone.
        force: Whether files that are there may be replaced.
        device: Where to encode.
        on_progress: Called with the images written, and all of them.

    Returns:
        The files, also those that were there.

    Raises:
        ConfigError: If the encoder of the run is no frozen one, its data holds latents already, or a crop is no whole
            number of cells.
        OutputError: If the folder holds other Parquet files, or one cannot be written.
        CheckpointError: If the encoder is not there.
        DataError: If no image is readable.
    """
    from stepladder.data.parquet import write_pairs

    encoder = _encoder(config)
    fingerprint = encoder.measure_fingerprint()
    photographs = len(open_source(config.data.train))
    origin = _origin(config, photographs, passes)
    there = _files_in(folder)
    kept = set() if force else {path for path in there if _is_of(path, origin, fingerprint)}
    if not force and (others := [path for path in there if path not in kept]):
        raise OutputError(
            f"{others[0]} exists already, and holds other crops than those of this run. Name another folder, or "
            "replace it: --force."
        )
    crops = photographs * passes
    groups = {"train": _crops(config, crops)}
    if config.data.validation:
        groups["validation"] = _validation(config)
    total = crops + (config.data.validation_images if config.data.validation else 0)
    files: list[Path] = []
    done = 0
    for name, images in groups.items():
        batches = iter(lambda images=images: list(itertools.islice(images, _ROWS)), [])  # type: ignore[misc]
        for number, shard in enumerate(batches):
            files.append(path := folder / f"{name}-{number:05}.parquet")
            if path not in kept:
                coded = _encoded(encoder, shard, batch, torch.device(device))
                write_pairs(path, coded, fingerprint, origin=origin, force=force)
            done += len(shard)
            on_progress(done, total)
    for path in set(there).difference(files):
        path.unlink()  # of what was replaced, which had more files
    return files


def _files_in(folder: Path) -> list[Path]:
    """Parquet files, without those that a killed process left half written."""
    return sorted(path for path in folder.glob("*.parquet") if not path.name.startswith("."))


def _origin(config: TrainConfig, photographs: int, passes: int) -> str:
    """What says which crops a run caches, and how it encodes them; the fingerprint says by which encoder."""
    encoder = unstructure(config.tokenizer.encoder)
    parts = {
        "data": unstructure(config.data),
        "photographs": photographs,
        "seed": config.seed,
        "passes": passes,
        "encoder": {key: encoder.get(key) for key in ("kind", "stride", "image_range", "posterior")},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _is_of(path: Path, origin: str, fingerprint: Sequence[float]) -> bool:
    """Whether a file holds crops of this origin, encoded by the same encoder."""
    from stepladder.data.parquet import read_origin

    found = read_origin(path)
    return found is not None and found[0] == origin and distance(found[1], fingerprint) <= TOLERANCE


def _encoder(config: TrainConfig) -> FrozenEncoder:
    tokenizer, side = config.tokenizer, config.data.crop.size
    if not isinstance(tokenizer.encoder, FrozenEncoderConfig):
        raise ConfigError(
            f"tokenizer.encoder.kind '{tokenizer.encoder.kind}' is part of the model, and may learn. Accepted: 'onnx' "
            "or 'diffusers', which are frozen. Train on images as they are."
        )
    if config.data.latents:
        raise ConfigError(
            "data.latents is true: the images of this run have their latents already. Set it to false to encode them."
        )
    if side % tokenizer.encoder.stride:
        stride = tokenizer.encoder.stride
        raise ConfigError(
            f"data.crop.size {side} is not a multiple of {stride}, the side ratio of the encoder. Use "
            f"{max(1, round(side / stride)) * stride}."
        )
    return FrozenEncoder(tokenizer.encoder, tokenizer.latent_channels)


def _crops(config: TrainConfig, count: int) -> Iterator[Tensor]:
    """The first crops of the stream, one from each photograph that it draws."""
    stream = TrainingCrops(
        open_source(config.data.train),
        crop=config.data.crop,
        batch_size=config.data.crop.crops_per_image,
        seed=config.seed,
    )
    for index in range(count):
        images = stream[index].images
        assert isinstance(images, Tensor)
        yield images[0]


def _validation(config: TrainConfig) -> Iterator[Tensor]:
    data = config.data
    side = data.validation_size or _ANY_SIDE
    for _, image in evaluation_images(open_source(data.validation), size=side, limit=data.validation_images):
        yield image


def _encoded(
    encoder: FrozenEncoder, images: Iterable[Tensor], batch: int, device: torch.device
) -> Iterator[CodedImages]:
    waiting = iter(images)
    while together := list(itertools.islice(waiting, batch)):
        stacked = torch.stack(together)
        yield CodedImages(stacked, encoder(stacked.to(device)).cpu())
