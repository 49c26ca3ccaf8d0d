"""Tokenizers x data x metrics -> a report, by the pinned protocol.

* Images are cut to the central square of their short side and resized to `size`, antialiased
  (`stepladder.data.evaluation_images`); `crops` cuts more squares from each. Each is encoded and decoded with the seed
  `seed + i`, i its index among all squares, so that the batch size changes nothing.
* Originals and reconstructions are clamped and rounded to 8 bits before every metric. Values per image are averaged
  over the images. Frechet distances are taken over unique images: duplicates count once.
* Decode time is that of `Tokenizer.decode`, without encoding: one decode to warm up, then every full batch timed with
  the device synchronised; the median, divided by the batch size. All models decode a batch before the next one starts,
  so that other load on the machine affects them alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from stepladder import __version__
from stepladder.data import ImageSource, evaluation_images
from stepladder.errors import ConfigError
from stepladder.layouts import check_side
from stepladder.measure.evaluated import Evaluated, Trial
from stepladder.measure.judges import Judges, Originals
from stepladder.measure.metrics import (
    FrechetMetric,
    Metric,
    in_library_range,
    inception,
    lpips,
    multiscale,
    pixels,
    quantise,
)
from stepladder.measure.reports import Report, Row
from stepladder.measure.sharing import shared_batches
from stepladder.models import ModelSpec
from stepladder.nn.efficientnet import efficientnet_lite
from stepladder.processes import Processes
from stepladder.sampling.randomness import NoiseKind
from stepladder.sampling.steps import EULER, SamplerConfig
from stepladder.tokenizer import Tokenizer

__all__ = ["METRICS", "MIN_SIZE", "evaluate"]

METRICS: tuple[Metric, ...] = (
    pixels.PSNR,
    pixels.SSIM,
    multiscale.MS_SSIM,
    lpips.LPIPS_VGG,
    inception.RFID,
    FrechetMetric(
        key="fd_efficientnet_lite2",
        heading="FD (Lite2)",
        digits=2,
        load=lambda device: in_library_range(efficientnet_lite(2, device=device).pooled),
    ),
    pixels.COLOUR_SHIFT,
)
"""The metrics, in the order of reports and tables."""

MIN_SIZE = 32
"""Smallest side of evaluated images: what the feature networks need."""

Model: TypeAlias = ModelSpec | tuple[str, Tokenizer, int | None] | tuple[str, Tokenizer, int | None, SamplerConfig]
"""What is evaluated: a name to load, or (name in the report, tokenizer, steps per stage or None for its own), with a
sampler of its own where it has one."""


def evaluate(
    models: Sequence[Model],
    source: ImageSource,
    *,
    size: int = 256,
    limit: int | None = None,
    crops: int = 1,
    seed: int = 0,
    batch: int = 8,
    bootstrap: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    sampler: SamplerConfig = EULER,
    noise: NoiseKind = "drawn",
    compile: bool = False,
    metrics: Sequence[Metric] = METRICS,
    on_progress: Callable[[int, int], None] | None = None,
    on_images: Callable[[int, Tensor, list[Tensor]], None] | None = None,
) -> Report:
    """Evaluates tokenizers on the same images; where a group of processes is open, by all of them.

    Args:
        models: At least one. Tokenizers are moved to `device`, converted to `dtype`, and set to evaluation mode.
        source: The photographs.
        size: Side of the square that images are cut to.
        limit: How many photographs at most; None for all.
        crops: Squares cut from each photograph; 1 for the central one alone.
        seed: Image i is decoded with the seed `seed + i`.
        batch: Images decoded at once; changes the time, and nothing else.
        bootstrap: How often photographs are drawn anew for the intervals of Frechet distances; 0 for no intervals.
        device: Where to compute.
        dtype: What the networks of models compute in; those of metrics compute in float32.
        sampler: Of models that name none.
        noise: Whether decodes draw any.
        compile: Whether the networks of decoders are compiled, in place.
        metrics: What to take; None in rows where weights are missing, or images are too small.
        on_progress: Called with the images done and the images of the data, after each batch; by the main process.
        on_images: Called with the place of the first image, the originals and, for each model, the reconstructions,
            after each batch of this process; all (B, 3, H, W) in [-1, 1], rounded to 8 bits.

    Raises:
        ConfigError: If an argument is out of range, or a model takes images of another size only.
        DataError: If no image is readable.
        CheckpointError: If a model cannot be loaded.
    """
    _check(models, size=size, seed=seed, batch=batch, bootstrap=bootstrap)
    device, processes = torch.device(device), Processes()
    loaded = [_load(model, sampler, size) for model in models]
    trials = [Evaluated(*model, device, dtype, noise=noise, compile=compile) for model in loaded]
    images = evaluation_images(source, size=size, limit=limit, crops=crops)
    judges = Judges(metrics, size=size, crops=crops, keep=bootstrap > 0, device=device)
    total = crops * (len(source) if limit is None else min(limit, len(source)))
    done = 0
    for first, references in shared_batches(images, batch, processes):
        found = None
        if references is not None:
            found, shown = _judge(trials, judges, references.to(device), seed + first)
            if on_images:
                on_images(first, *shown)
        for each in processes.gather(found):
            done += _take(trials, judges, each) if each else 0
        if on_progress and processes.main:
            on_progress(done, total)
    report = None
    if processes.main:
        report = Report(
            data=source.name,
            images=done,
            crops=crops,
            skipped=len(images.unreadable),
            size=size,
            seed=seed,
            noise=noise,
            compiled=compile,
            bootstrap=bootstrap,
            processes=processes.count,
            **_surroundings(device, dtype),
            rows=_rows(trials, judges, batch, bootstrap),
            notes={**judges.notes, **judges.caveats(), **_exactness(trials)},
        )
    found_by_main = processes.share(report)
    assert found_by_main is not None, "the main process has a report"
    return found_by_main


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What a process found of a batch; on the CPU."""

    originals: Originals
    trials: list[Trial]
    """Of each model."""


@torch.inference_mode()
def _judge(
    trials: Sequence[Evaluated], judges: Judges, references: Tensor, seed: int
) -> tuple[_Found, tuple[Tensor, list[Tensor]]]:
    """Every model and metric on a batch, whose first image has this seed; originals and reconstructions beside it."""
    quantised = quantise(references)
    originals = judges.look(quantised)
    seeds = range(seed, seed + len(references))
    found, images = zip(
        *(trial.run(references, quantised, seeds, judges, originals.fresh) for trial in trials), strict=True
    )
    return _Found(originals=originals, trials=list(found)), (quantised * 2 - 1, [each * 2 - 1 for each in images])


def _take(trials: Sequence[Evaluated], judges: Judges, found: _Found) -> int:
    """Takes in what was found of a batch; how many images that is."""
    new, count = judges.take(found.originals), len(found.originals.digests)
    for trial, each in zip(trials, found.trials, strict=True):
        trial.take(each, new, count, keep=judges.keep)
    return count


def _rows(trials: Sequence[Evaluated], judges: Judges, batch: int, bootstrap: int) -> tuple[Row, ...]:
    """The row of each model; those after the first are compared with it."""
    distances = [trial.distances(judges, bootstrap) for trial in trials]
    return tuple(
        trial.row(judges, batch, distances[place], distances[0] if place else {}) for place, trial in enumerate(trials)
    )


def _check(models: Sequence[Model], *, size: int, seed: int, batch: int, bootstrap: int) -> None:
    if not models:
        raise ConfigError("No model to evaluate. At least one is needed. Name one, for example photo@8.")
    if size < MIN_SIZE:
        raise ConfigError(
            f"Evaluation size is {size}. It must be at least {MIN_SIZE} pixels. Pass --size, for example 256."
        )
    if seed < 0:
        raise ConfigError(f"Seed is {seed}. It must be at least 0. Pass another --seed.")
    if batch < 1:
        raise ConfigError(f"Batch is {batch}. At least 1 image is needed. Pass a larger batch.")
    if bootstrap < 0 or bootstrap == 1:
        raise ConfigError(
            f"Bootstrap is {bootstrap}. It takes 0, for no intervals, or at least 2 resamples. Pass --bootstrap 100."
        )


def _load(model: Model, sampler: SamplerConfig, size: int) -> tuple[str, Tokenizer, int | None, SamplerConfig]:
    """A model that takes images of this size, with its steps and its sampler."""
    if isinstance(model, ModelSpec):
        model = model.name, Tokenizer.from_pretrained(model.name), model.steps
    name, tokenizer, steps, *own = model
    if steps is not None and steps < 1:
        raise ConfigError(f"Model {name} with {steps} steps per stage. At least 1 is needed. Pass 1 or more.")
    taking = own[0] if own else sampler
    check_side(tokenizer.layout, size, name)
    taking.shifts(tokenizer.schedule)
    return name, tokenizer, steps, taking


def _exactness(trials: Sequence[Evaluated]) -> dict[str, str]:
    exact = any(not math.isfinite(value) for trial in trials for value in trial.values.get(pixels.PSNR.key, ()))
    return {pixels.PSNR.key: "infinite where a reconstruction equals its original"} if exact else {}


def _surroundings(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "device": _describe(device),
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "version": __version__,
    }


def _describe(device: torch.device) -> str:
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type
