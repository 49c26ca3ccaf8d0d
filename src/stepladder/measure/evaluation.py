"""Tokenizers x data x metrics -> a report, by the pinned protocol.

* Images are cut to the central square of their short side and resized to `size`, antialiased
  (`stepladder.data.evaluation_images`). Each is encoded and decoded with the seed `seed + i`, i its place in the data,
  so that the batch size changes nothing.
* Originals and reconstructions are clamped and rounded to 8 bits before every metric. Values per image are averaged
  over the images. Frechet distances are taken over different images: one that comes twice counts once.
* Decode time is that of `Tokenizer.decode` alone, encoding left out: one decode to warm up, then every full batch
  timed with the device synchronised; the median, divided by the batch. All models see a batch before the next comes, so
  that whatever else the machine does touches them alike.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean, median
from typing import Any, TypeAlias

import torch
from torch import Tensor

from stepladder import __version__
from stepladder.data import ImageSource, evaluation_images
from stepladder.errors import ConfigError, MissingDependencyError
from stepladder.layouts import check_side
from stepladder.losses import feature_network
from stepladder.measure.metrics import (
    FeatureStatistics,
    InceptionFeatures,
    LpipsVgg,
    colour_shift,
    frechet_distance,
    psnr,
    quantise,
    ssim,
)
from stepladder.measure.profiling import count_flops, synchronise
from stepladder.models import ModelSpec
from stepladder.tokenizer import Encoding, Tokenizer

__all__ = ["MIN_SIZE", "Networks", "Report", "Row", "evaluate"]

MIN_SIZE = 32
"""Smallest side of evaluated images: what the feature networks need."""

Model: TypeAlias = ModelSpec | tuple[str, Tokenizer, int | None]
"""What is evaluated: a name to load, or (name in the report, tokenizer, steps per stage or None for its own)."""

_PER_IMAGE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "psnr_db": psnr,
    "ssim": ssim,
    "colour_shift": colour_shift,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One model at one number of steps. A metric is None where it could not be taken; `Report.notes` says why."""

    model: str
    steps_per_stage: int
    stages: int
    network_evaluations: int
    """Evaluations of the decoder's network in one decode."""
    psnr_db: float
    """Mean over images of the PSNR of each; infinite if one is reproduced exactly."""
    ssim: float
    lpips_vgg: float | None
    rfid: float | None
    fd_efficientnet_lite0: float | None
    colour_shift: float
    """Largest absolute difference of the three channel means, on [0, 1], averaged over images."""
    seconds_per_image: float
    """Time of a decode over the images in it."""
    batch: int
    """Images decoded at once."""
    parameters: int
    """Of encoder, bottleneck and decoder."""
    gflop_per_image: float
    """Floating-point operations of a decode, in 1e9, as torch's FlopCounterMode counts them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What an evaluation found."""

    data: str
    images: int
    """Images evaluated."""
    skipped: int
    """Images that could not be read."""
    size: int
    seed: int
    device: str
    threads: int
    version: str
    """Of stepladder."""
    rows: tuple[Row, ...]
    notes: dict[str, str]
    """For a metric that is missing, or has a catch: why."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; numbers that are not finite become None."""
        return {**asdict(self), "rows": [{k: _plain(v) for k, v in asdict(row).items()} for row in self.rows]}


@dataclass(frozen=True, kw_only=True)
class Networks:
    """The networks of perceptual metrics, by the name of their metric. They take images in [-1, 1]."""

    distances: dict[str, Callable[[Tensor, Tensor], Tensor]] = field(default_factory=dict)
    """(images, references) -> one value per image."""
    features: dict[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    """images -> features (B, D), of which a Frechet distance is taken."""
    notes: dict[str, str] = field(default_factory=dict)
    """Why a network is missing."""

    @classmethod
    def installed(cls, device: torch.device | str = "cpu") -> Networks:
        """Those whose packages and weights are on this machine. Nothing is fetched."""
        networks = cls()
        loaders: dict[str, Callable[[], None]] = {
            "lpips_vgg": lambda: networks.distances.update(lpips_vgg=LpipsVgg().to(device)),
            "rfid": lambda: networks.features.update(rfid=InceptionFeatures().to(device)),
            "fd_efficientnet_lite0": lambda: networks.features.update(
                fd_efficientnet_lite0=feature_network(device=device).pooled
            ),
        }
        for metric, load in loaders.items():
            try:
                load()
            except MissingDependencyError as error:
                networks.notes[metric] = str(error)
        return networks


def evaluate(
    models: Sequence[Model],
    source: ImageSource,
    *,
    size: int = 256,
    limit: int | None = None,
    seed: int = 0,
    batch: int = 8,
    device: torch.device | str = "cpu",
    networks: Networks | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    on_images: Callable[[int, Tensor, list[Tensor]], None] | None = None,
) -> Report:
    """Evaluates tokenizers on the same images.

    Args:
        models: At least one. Tokenizers are moved to `device`, and set to evaluation mode.
        source: The images.
        size: Side of the square that images are cut to.
        limit: How many images at most; None for all.
        seed: Image i is decoded with the seed `seed + i`.
        batch: Images decoded at once; changes the time, and nothing else.
        device: Where to compute.
        networks: Networks of perceptual metrics; by default, those installed.
        on_progress: Called after each batch with the images done, and the images of the data.
        on_images: Called after each batch with the place of its first image, the originals and, for each model, the
            reconstructions; all (B, 3, H, W) in [-1, 1], rounded to 8 bits.

    Raises:
        ConfigError: If an argument is out of range, or a model takes images of another size only.
        DataError: If no image is readable.
        CheckpointError: If a model cannot be loaded.
    """
    _check(models, size=size, seed=seed, batch=batch)
    device = torch.device(device)
    loaded = [_load(model) for model in models]
    for name, tokenizer, _ in loaded:
        check_side(tokenizer.layout, size, name)
    trials = [_Evaluated(*model, device) for model in loaded]
    networks = networks or Networks.installed(device)
    images = evaluation_images(source, size=size, limit=limit)
    originals = {metric: FeatureStatistics() for metric in networks.features}
    total = len(source) if limit is None else min(limit, len(source))
    seen: set[bytes] = set()
    done = 0
    with torch.inference_mode():
        for references in _batches((image for _, image in images), batch):
            references = references.to(device)
            quantised = quantise(references)
            fresh = _first_seen(quantised, seen)
            for metric, network in networks.features.items():
                originals[metric].update(network(quantised[fresh] * 2 - 1) if fresh else quantised.new_zeros(0, 0))
            seeds = range(seed + done, seed + done + len(references))
            found = [trial.run(references, quantised, seeds, fresh, networks) for trial in trials]
            if on_images:
                on_images(done, quantised * 2 - 1, [each * 2 - 1 for each in found])
            done += len(references)
            if on_progress:
                on_progress(done, total)
    return Report(
        data=source.name,
        images=done,
        skipped=len(images.unreadable),
        size=size,
        seed=seed,
        device=_describe(device),
        threads=torch.get_num_threads(),
        version=__version__,
        rows=tuple(trial.row(originals, batch) for trial in trials),
        notes={**networks.notes, **_caveats(originals, done), **_exactness(trials)},
    )


class _Evaluated:
    """One model on its way through the images."""

    def __init__(self, name: str, tokenizer: Tokenizer, steps: int | None, device: torch.device) -> None:
        self.name = name
        self.tokenizer = tokenizer.to(device).eval()
        self.steps = tokenizer.steps_per_stage if steps is None else steps
        self.device = device
        self.values: dict[str, list[float]] = {}
        self.features: dict[str, FeatureStatistics] = {}
        self.seconds: list[tuple[int, float]] = []  # (images, time) of each decode
        self.flop = 0.0

    def run(
        self, references: Tensor, quantised: Tensor, seeds: Sequence[int], fresh: list[int], networks: Networks
    ) -> Tensor:
        """Reconstructs a batch and takes all metrics; `fresh` are the places of images that were not there before.

        Returns the reconstructions in [0, 1].
        """
        code = self.tokenizer.encode(references)
        if not self.seconds:
            self.flop = count_flops(lambda: self._decode(code, seeds)) / len(references)  # the warm-up, too
        start = self._now()
        decoded = self._decode(code, seeds)
        self.seconds.append((len(references), self._now() - start))

        images = quantise(decoded)
        for metric, measure in _PER_IMAGE.items():
            self.values.setdefault(metric, []).extend(measure(images, quantised).tolist())
        for metric, distance in networks.distances.items():
            self.values.setdefault(metric, []).extend(distance(images * 2 - 1, quantised * 2 - 1).tolist())
        for metric, network in networks.features.items():
            if fresh:
                self.features.setdefault(metric, FeatureStatistics()).update(network(images[fresh] * 2 - 1))
        return images

    def row(self, originals: dict[str, FeatureStatistics], batch: int) -> Row:
        values = {metric: fmean(each) for metric, each in self.values.items()}
        for metric, statistics in originals.items():
            if statistics.count > 1:
                values[metric] = frechet_distance(statistics, self.features[metric])
        largest = max(count for count, _ in self.seconds)
        return Row(
            model=self.name,
            steps_per_stage=self.steps,
            stages=self.tokenizer.schedule.num_stages,
            network_evaluations=self.tokenizer.network_evaluations(self.steps),
            psnr_db=values["psnr_db"],
            ssim=values["ssim"],
            lpips_vgg=values.get("lpips_vgg"),
            rfid=values.get("rfid"),
            fd_efficientnet_lite0=values.get("fd_efficientnet_lite0"),
            colour_shift=values["colour_shift"],
            seconds_per_image=median(time for count, time in self.seconds if count == largest) / largest,
            batch=min(batch, largest),
            parameters=sum(p.numel() for p in self.tokenizer.parameters()),
            gflop_per_image=self.flop / 1e9,
        )

    def _decode(self, code: Encoding, seeds: Sequence[int]) -> Tensor:
        return self.tokenizer.decode(code, seeds=seeds, steps=self.steps)

    def _now(self) -> float:
        synchronise(self.device)
        return time.perf_counter()


def _check(models: Sequence[Model], *, size: int, seed: int, batch: int) -> None:
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


def _load(model: Model) -> tuple[str, Tokenizer, int | None]:
    if isinstance(model, ModelSpec):
        return model.name, Tokenizer.from_pretrained(model.name), model.steps
    name, _, steps = model
    if steps is not None and steps < 1:
        raise ConfigError(f"Model {name} with {steps} steps per stage. At least 1 is needed. Pass 1 or more.")
    return model


def _batches(images: Iterable[Tensor], batch: int) -> Iterator[Tensor]:
    group: list[Tensor] = []
    for image in images:
        group.append(image)
        if len(group) == batch:
            yield torch.stack(group)
            group = []
    if group:
        yield torch.stack(group)


def _first_seen(images: Tensor, seen: set[bytes]) -> list[int]:
    """The places of images that are not in `seen`, which they join."""
    fresh = []
    for place, image in enumerate(images.cpu()):
        digest = hashlib.sha256(image.contiguous().numpy().tobytes()).digest()
        if digest not in seen:
            seen.add(digest)
            fresh.append(place)
    return fresh


def _caveats(originals: dict[str, FeatureStatistics], images: int) -> dict[str, str]:
    notes = {}
    for metric, statistics in originals.items():
        dimensions = len(statistics.mean)
        if statistics.count < 2:
            notes[metric] = f"needs at least 2 different images; there is {statistics.count}"
        elif statistics.count <= dimensions:
            notes[metric] = (
                f"over {statistics.count} different images of {images}, fewer than its {dimensions} features: compare "
                "it over the same images only"
            )
        elif statistics.count < images:
            notes[metric] = f"over the {statistics.count} different images of {images}"
    return notes


def _exactness(trials: Sequence[_Evaluated]) -> dict[str, str]:
    exact = any(not math.isfinite(value) for trial in trials for value in trial.values["psnr_db"])
    return {"psnr_db": "infinite where a reconstruction equals its original"} if exact else {}


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _describe(device: torch.device) -> str:
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type
