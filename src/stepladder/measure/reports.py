"""The report of an evaluation: a row per model, as plain values and as JSON."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from stepladder.measure.gains import StageGain
from stepladder.sampling.randomness import NoiseKind
from stepladder.sampling.steps import SamplerConfig

__all__ = ["Report", "Row"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One model at one number of steps."""

    model: str
    steps_per_stage: int
    stages: int
    network_evaluations: int
    """Evaluations of the decoder's network in one decode."""
    sampler: SamplerConfig
    """How steps were taken."""
    metrics: Mapping[str, float | None]
    """By key, in the order of `evaluation.METRICS`: means over images, and Frechet distances. None where a metric could
    not be taken; `Report.notes` says why."""
    intervals: Mapping[str, tuple[float, float]]
    """The 95 % interval of a metric, by its key; empty if none was asked for."""
    differences: Mapping[str, tuple[float, float]]
    """The 95 % interval of what a metric is above the first row's, by its key; empty in the first row, and if none was
    asked for."""
    stage_gains: tuple[StageGain, ...] | None
    """Gains of the stages, averaged over images; None if the decoder makes no initial estimate, or the ladder does not
    divide the side."""
    seconds_per_image: float
    """Time of a decode over the images in it."""
    batch: int
    """Images decoded at once."""
    parameters: int
    """Of encoder, bottleneck and decoder."""
    gflop_per_image: float
    """Floating-point operations of a decode, in 1e9, as torch's FlopCounterMode counts them."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, sampler and metrics beside the rest; numbers that are not finite become None."""
        flat = {
            "sampler": self.sampler.as_dict(),
            "metrics": dict(self.metrics),
            "stage_gains": {"stage_gains": self.stage_gains and [asdict(gain) for gain in self.stage_gains]},
            "intervals": {f"{key}_interval": list(each) for key, each in self.intervals.items()},
            "differences": {f"{key}_over_first_interval": list(each) for key, each in self.differences.items()},
        }
        found: dict[str, Any] = {}
        for name, value in asdict(self).items():
            found |= flat.get(name, {name: value})
        return {name: _plain(value) for name, value in found.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """The results of an evaluation."""

    data: str
    images: int
    """Images evaluated: crops, where there are several of a photograph."""
    crops: int
    """Squares cut from each photograph; 1 is the central one alone."""
    skipped: int
    """Photographs that could not be read."""
    size: int
    seed: int
    noise: NoiseKind
    """Where the noise of decodes came from."""
    compiled: bool
    """Whether the networks of decoders were compiled."""
    device: str
    dtype: str
    """What the networks of models compute in."""
    threads: int
    version: str
    """Of stepladder."""
    bootstrap: int
    """How often photographs were drawn anew for an interval; 0 for none."""
    processes: int = 1
    """How many shared the work, and perhaps a machine: times of decodes are those of each."""
    rows: tuple[Row, ...]
    notes: Mapping[str, str]
    """Why a metric is missing, or what to be careful about."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; numbers that are not finite become None."""
        return {**asdict(self), "rows": [row.as_dict() for row in self.rows]}


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
