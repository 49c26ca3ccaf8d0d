"""One model in the course of an evaluation: what it makes of a batch, and its row of the report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import fmean, median

import torch
from torch import Tensor

from stepladder.measure.gains import StageGain, stage_gains
from stepladder.measure.judges import Features, Judges
from stepladder.measure.metrics import (
    difference_interval,
    frechet_distance,
    frechet_interval,
    frechet_resamples,
    quantise,
)
from stepladder.measure.profiling import count_flops, synchronise
from stepladder.measure.reports import Row
from stepladder.sampling.randomness import NoiseKind
from stepladder.sampling.steps import SamplerConfig
from stepladder.tokenizer import Encoding, Tokenizer

__all__ = ["Distance", "Evaluated", "Trial"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What a model made of a batch."""

    values: dict[str, list[float]]
    """Of each image, by key of the metric."""
    features: dict[str, Tensor]
    """Of reconstructions of `Originals.fresh`, by key of the distance."""
    gains: list[list[StageGain]]
    """Of each image, of each stage."""
    seconds: float
    """Time of the decode."""


@dataclass(frozen=True, slots=True)
class Distance:
    """A Frechet distance of a model."""

    value: float
    drawn: Tensor | None
    """Over photographs drawn anew (resamples,); None if none were drawn."""


class Evaluated:
    """One model during an evaluation."""

    def __init__(
        self,
        name: str,
        tokenizer: Tokenizer,
        steps: int | None,
        sampler: SamplerConfig,
        device: torch.device,
        dtype: torch.dtype,
        *,
        noise: NoiseKind,
        compile: bool,
    ) -> None:
        self.name = name
        self.noise, self.compile = noise, compile
        self.sampler = sampler
        self.tokenizer = tokenizer.to(device).to_precision(dtype).eval()
        if compile:
            self.tokenizer.compile_decoder()
        self.steps = tokenizer.steps_per_stage if steps is None else steps
        self.device = device
        self.values: dict[str, list[float]] = {}
        self.features: dict[str, Features] = {}
        self.gains: list[list[StageGain]] = []  # of each image, of each stage
        self.seconds: list[tuple[int, float]] = []  # (images, time) of each decode
        self.flop: float | None = None  # until the first batch
        self.compiled: set[int] = set()  # sizes of batches for which the decoder is compiled

    def run(
        self, references: Tensor, quantised: Tensor, seeds: Sequence[int], judges: Judges, fresh: Sequence[int]
    ) -> tuple[Trial, Tensor]:
        """Reconstructs a batch and takes all metrics, Frechet features of the `fresh` ones; and the reconstructions."""
        code = self.tokenizer.encode(references)
        if self.flop is None:
            with torch.compiler.set_stance("force_eager") if self.compile else nullcontext():
                self.flop = count_flops(lambda: self._decode(code, seeds)) / len(references)  # the warm-up, too
        if self.compile and len(references) not in self.compiled:
            self._decode(code, seeds)
            self.compiled.add(len(references))
        start = self._now()
        stages = self._decode(code, seeds)
        seconds = self._now() - start

        images = quantise(stages[-1])
        fits = references.shape[-1] % self.tokenizer.schedule.multiple == 0
        taken = judges.networks.items() if fresh else ()
        trial = Trial(
            values={key: measure(images, quantised).tolist() for key, measure in judges.measures.items()},
            features={key: network(images[list(fresh)]).detach().cpu() for key, network in taken},
            gains=(stage_gains(self.tokenizer, code, stages, references) or []) if fits else [],
            seconds=seconds,
        )
        return trial, images

    def take(self, trial: Trial, new: list[int], count: int, *, keep: bool) -> None:
        """Takes in what was found of a batch of `count` images, features of the `new` ones."""
        for key, values in trial.values.items():
            self.values.setdefault(key, []).extend(values)
        for key, features in trial.features.items() if new else ():
            self.features.setdefault(key, Features(keep=keep)).update(features[new])
        self.gains += trial.gains
        self.seconds.append((count, trial.seconds))

    def distances(self, judges: Judges, resamples: int) -> dict[str, Distance]:
        """Frechet distances by key, once all batches are taken in; 0 `resamples` for none."""
        groups = torch.tensor(judges.photographs)
        found = {}
        for key, originals in judges.originals.items():
            if originals.statistics.count > 1:
                features, drawn = self.features[key], None
                if resamples and len(groups.unique()) > 1:
                    drawn = frechet_resamples(originals.all, features.all, groups, resamples=resamples)
                found[key] = Distance(frechet_distance(originals.statistics, features.statistics), drawn)
        return found

    def row(self, judges: Judges, batch: int, distances: Mapping[str, Distance], first: Mapping[str, Distance]) -> Row:
        """The row of the report, with `distances` of this model, and those of the `first` one; none if this is it."""
        values = {key: fmean(each) for key, each in self.values.items()}
        values |= {key: each.value for key, each in distances.items()}
        largest = max(count for count, _ in self.seconds)
        return Row(
            model=self.name,
            steps_per_stage=self.steps,
            stages=self.tokenizer.schedule.num_stages,
            network_evaluations=self.tokenizer.network_evaluations(self.steps, sampler=self.sampler),
            sampler=self.sampler,
            metrics={metric.key: values.get(metric.key) for metric in judges.metrics},
            intervals={
                key: frechet_interval(each.value, each.drawn)
                for key, each in distances.items()
                if each.drawn is not None
            },
            differences=_differences(distances, first),
            stage_gains=_mean_gains(self.gains),
            seconds_per_image=median(time for count, time in self.seconds if count == largest) / largest,
            batch=min(batch, largest),
            parameters=sum(p.numel() for p in self.tokenizer.parameters()),
            gflop_per_image=(self.flop or 0.0) / 1e9,
        )

    def _decode(self, code: Encoding, seeds: Sequence[int]) -> list[Tensor]:
        """The images of all stages, as `decode` makes them on its way to the last."""
        drawn = seeds if self.noise == "drawn" else None
        return list(
            self.tokenizer.decode_progressively(
                code, seeds=drawn, steps=self.steps, sampler=self.sampler, noise=self.noise
            )
        )

    def _now(self) -> float:
        synchronise(self.device)
        return time.perf_counter()


def _differences(distances: Mapping[str, Distance], first: Mapping[str, Distance]) -> dict[str, tuple[float, float]]:
    """Intervals of what distances are above the first ones, by key, of those that were drawn."""
    found = {}
    for key, theirs in first.items():
        ours = distances[key]
        if ours.drawn is not None and theirs.drawn is not None:
            found[key] = difference_interval(ours.value - theirs.value, ours.drawn, theirs.drawn)
    return found


def _mean_gains(gains: Sequence[Sequence[StageGain]]) -> tuple[StageGain, ...] | None:
    """Of each stage, over the images."""
    means = (
        {
            name: fmean(getattr(gain, name) for gain in stage)
            for name in ("psnr_db", "over_initial_db", "over_before_db")
        }
        for stage in zip(*gains, strict=True)
    )
    return tuple(StageGain(**mean) for mean in means) or None
