"""Encoding once: the crops of a run and their raw latents, side by side in Parquet files.

Crop n is the n-th of the stream that training itself would draw with the same configuration, so that each pass over the
data holds every photograph once. Training then cuts smaller windows from them (`data.pairs`).
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from stepladder.data import CodedImages, TrainingCrops, evaluation_images, open_source
from stepladder.encoders import FrozenEncoder, FrozenEncoderConfig
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

    Args:
        config: The run. `data.crop` says how crops are cut; validation images are cut as evaluations cut them.
        folder: Made if it is missing.
        passes: How many crops of each photograph.
        batch: Crops that are encoded together; changes the time alone.
        force: Whether files that are there may be replaced.
        device: Where to encode.
        on_progress: Called with the images written, and all of them.

    Returns:
        The files.

    Raises:
        ConfigError: If the encoder of the run is no frozen one, its data holds latents already, or a crop is no whole
            number of cells.
        OutputError: If the folder holds Parquet files already, or one cannot be written.
        CheckpointError: If the encoder is not there.
        DataError: If no image is readable.
    """
    from stepladder.data.parquet import write_pairs

    encoder = _encoder(config)
    if not force and (there := sorted(folder.glob("*.parquet"))):
        raise OutputError(f"{there[0]} exists already. Name another folder, or allow to replace it (force).")
    fingerprint = encoder.measure_fingerprint()
    crops = len(open_source(config.data.train)) * passes
    groups = {"train": _crops(config, crops)}
    if config.data.validation:
        groups["validation"] = _validation(config)
    total = crops + (config.data.validation_images if config.data.validation else 0)
    files: list[Path] = []
    done = 0
    for name, images in groups.items():
        batches = iter(lambda images=images: list(itertools.islice(images, _ROWS)), [])  # type: ignore[misc]
        for number, shard in enumerate(batches):
            files.append(folder / f"{name}-{number:05}.parquet")
            write_pairs(files[-1], _encoded(encoder, shard, batch, torch.device(device)), fingerprint, force=force)
            done += len(shard)
            on_progress(done, total)
    return files


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
