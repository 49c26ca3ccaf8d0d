"""How good and how fast is what a prior draws, through several decoders of one encoder?

One latent is drawn for each reference image, of its class; all decoders decode the same latents with the same seeds.
The Frechet distance is taken between their images and the references, as `stepladder evaluate` takes it: after rounding
to 8 bits, over different references. So is that of the references' own reconstructions, about the lowest that better
latents can reach. Both are also compared with the training images: where drawn images are nearer to those than
reconstructions of images that the prior has not seen, it repeats what it saw.
Drawing and decoding are timed apart: warmed up, synchronised, the median of the batches.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from examples.generation.latents import batches
from examples.generation.model import Prior
from examples.generation.neighbours import TrainingImages
from examples.generation.sampling import decoder_seeds, draw, evaluations
from stepladder import Tokenizer, __version__
from stepladder.data import ImageSource
from stepladder.errors import ConfigError
from stepladder.measure.judges import digest, first_seen
from stepladder.measure.metrics import FeatureStatistics, frechet_distance, quantise
from stepladder.measure.profiling import count_flops, synchronise
from stepladder.sampling.guidance import GuidanceConfig

__all__ = ["Decoder", "Report", "Row", "check_decoders", "measure"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoder:
    """A tokenizer, and how many steps it takes in each stage."""

    name: str
    tokenizer: Tokenizer
    steps: int

    def __str__(self) -> str:
        return f"{self.name.rstrip('/').rpartition('/')[2]}@{self.steps}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One decoder."""

    model: str
    steps_per_stage: int
    stages: int
    network_evaluations: int
    """Of the decoder, for one image."""
    fd_efficientnet_lite2: float
    """Of images decoded from drawn latents, to the references."""
    fd_reconstructions: float
    """Of the references, encoded and decoded, to themselves."""
    drawn_to_training: float | None
    """Median distance of drawn images to their nearest training images (`neighbours`); None without these."""
    reconstructed_to_training: float | None
    """That of the references, encoded and decoded."""
    gflop_per_image: float
    """Of the decoder."""
    seconds_per_image: float
    """Of the decoder."""
    prior_seconds_per_image: float
    """Of drawing a latent; the same for all decoders."""
    batch: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What was found."""

    data: str
    images: int
    """References, and as many drawn images."""
    size: int
    seed: int
    device: str
    threads: int
    version: str
    """Of stepladder."""
    prior: dict[str, Any]
    """The prior: steps, guidance, evaluations and parameters of its network, operations for one latent."""
    rows: tuple[Row, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def check_decoders(prior: Prior, decoders: Sequence[Decoder]) -> None:
    """Checks that decoders take what a prior draws.

    Raises:
        ConfigError: If one belongs to another encoder.
    """
    for decoder in decoders:
        if decoder.tokenizer.fingerprint() != prior.config.fingerprint:
            raise ConfigError(
                f"Model '{decoder.name}' has another encoder than that whose latents the prior draws. Name models "
                "that share that encoder, or encode with this one and train again."
            )


@torch.inference_mode()
def measure(
    prior: Prior,
    decoders: Sequence[Decoder],
    source: ImageSource,
    labels: Sequence[int],
    features: Callable[[Tensor], Tensor],
    *,
    steps: int,
    guidance: GuidanceConfig,
    training: TrainingImages | None = None,
    seed: int = 0,
    limit: int | None = None,
    batch: int = 50,
    data_name: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Measures a prior through each of the decoders.

    Args:
        prior: In evaluation mode.
        decoders: At least one, on the same device.
        source: Reference images.
        labels: Their classes.
        features: Network of the Frechet distance: images in [-1, 1] to (B, D).
        steps: Of the prior.
        guidance: Of the prior.
        training: What the prior learnt from; None leaves distances to it out.
        seed: Latent i is drawn with the seed `seed + i`, and reconstruction i decoded with it.
        limit: How many references at most; None for all.
        batch: Images at once.
        data_name: What the report calls the references, instead of their path.
        on_progress: Called with the images done and their number.

    Raises:
        ConfigError: If a decoder belongs to another encoder.
        ImageError: If a reference cannot be read.
    """
    check_decoders(prior, decoders)
    device = prior.mean.device
    side = prior.config.side
    references, seen = FeatureStatistics(), set[bytes]()
    drawing, trials = _Clock(device), [_Trial(each, features, training, device) for each in decoders]
    total = len(source) if limit is None else min(limit, len(source))
    done = 0
    for images in batches(source, side, batch, limit):
        images, places = images.to(device), range(done, done + len(images))
        seeds, chosen = [seed + i for i in places], [labels[i] for i in places]
        quantised = quantise(images)
        fresh = first_seen([digest(image) for image in quantised.cpu()], seen)
        if fresh:
            references.update(features(quantised[fresh] * 2 - 1))
        latents = drawing.time(partial(draw, prior, chosen, seeds, steps=steps, guidance=guidance), len(images))
        coded = decoders[0].tokenizer.encode(images).latent
        for trial in trials:
            trial.run(latents, coded, seeds, fresh)
        done += len(images)
        if on_progress:
            on_progress(done, total)
    return Report(
        data=data_name or source.name,
        images=done,
        size=side,
        seed=seed,
        device=f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type,
        threads=torch.get_num_threads(),
        version=__version__,
        prior={
            "steps": steps,
            "guidance_scale": guidance.scale,
            "guidance_interval": list(guidance.interval),
            "network_evaluations": evaluations(steps, guidance),
            "parameters": sum(p.numel() for p in prior.parameters()),
            "gflop_per_image": drawing.flop / 1e9,
            "seconds_per_image": drawing.seconds,
        },
        rows=tuple(trial.row(references, drawing.seconds) for trial in trials),
    )


class _Clock:
    """Times a call on batch after batch; the first is run once more before, to warm up and to count its operations."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.flop = 0.0
        self.times: list[tuple[int, float]] = []  # (images, seconds) of each batch

    def time(self, call: Callable[[], Tensor], images: int) -> Tensor:
        """What the call returns."""
        if not self.times:
            self.flop = count_flops(call) / images
        synchronise(self.device)
        start = time.perf_counter()
        found = call()
        synchronise(self.device)
        self.times.append((images, time.perf_counter() - start))
        return found

    @property
    def batch(self) -> int:
        """Images of a full batch."""
        return max(images for images, _ in self.times)

    @property
    def seconds(self) -> float:
        """For each image, the median of the full batches."""
        return median(seconds for images, seconds in self.times if images == self.batch) / self.batch


class _Images:
    """What is asked of images: statistics of their features, and how far they are from training images."""

    def __init__(self, features: Callable[[Tensor], Tensor], training: TrainingImages | None) -> None:
        self._features, self._training = features, training
        self._distances: list[float] = []
        self.statistics = FeatureStatistics()

    def add(self, images: Tensor) -> None:
        """Takes in a batch."""
        self.statistics.update(self._features(quantise(images) * 2 - 1))
        if self._training is not None:
            self._distances += self._training.distances(images).tolist()

    @property
    def to_training(self) -> float | None:
        """The median distance to the nearest training image."""
        return median(self._distances) if self._distances else None


class _Trial:
    """One decoder on its way through the images."""

    def __init__(
        self,
        decoder: Decoder,
        features: Callable[[Tensor], Tensor],
        training: TrainingImages | None,
        device: torch.device,
    ) -> None:
        self.decoder, self.clock = decoder, _Clock(device)
        self.drawn, self.reconstructed = _Images(features, training), _Images(features, training)

    def run(self, latents: Tensor, coded: Tensor, seeds: Sequence[int], fresh: list[int]) -> None:
        """Decodes drawn latents and those of the references, of which `fresh` were not there before."""
        images = self.clock.time(partial(self._decode, latents, decoder_seeds(seeds)), len(latents))
        self.drawn.add(images)
        if fresh:
            self.reconstructed.add(self._decode(coded[fresh], [seeds[i] for i in fresh]))

    def row(self, references: FeatureStatistics, prior_seconds: float) -> Row:
        decoder, stages = self.decoder, self.decoder.tokenizer.schedule.num_stages
        return Row(
            model=decoder.name,
            steps_per_stage=decoder.steps,
            stages=stages,
            network_evaluations=stages * decoder.steps,
            fd_efficientnet_lite2=frechet_distance(references, self.drawn.statistics),
            fd_reconstructions=frechet_distance(references, self.reconstructed.statistics),
            drawn_to_training=self.drawn.to_training,
            reconstructed_to_training=self.reconstructed.to_training,
            gflop_per_image=self.clock.flop / 1e9,
            seconds_per_image=self.clock.seconds,
            prior_seconds_per_image=prior_seconds,
            batch=self.clock.batch,
        )

    def _decode(self, latents: Tensor, seeds: Sequence[int]) -> Tensor:
        return self.decoder.tokenizer.decode(latents, seeds=seeds, steps=self.decoder.steps)
