"""Where the time of a training step goes.

The loop names the parts of a step for torch's profiler. A profile takes a few steps of a run, after a warm-up, and
reports for each part the time of the host and of the device. The rest of a step is between the parts: records, the loop
itself, and waiting for an accelerator.
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from stepladder.training.records import StepRecord

__all__ = ["PARTS", "STEPS_TAKEN", "Part", "StepProfile", "profile_steps"]

PARTS = {
    "data": "wait for images",
    "copy": "copy them to the device",
    "forward": "network and losses, forward",
    "backward": "network and losses, backward",
    "clip": "norm of the gradient",
    "optimise": "optimiser",
    "average": "moving average",
}
"""Parts of a step by their names in the loop, and in words."""

_WARM_UP, _STEPS = 3, 10
STEPS_TAKEN = _WARM_UP + _STEPS + 1
"""By a profiled run: one more than is measured, as a step ends where the next begins."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of a step."""

    name: str
    host_ms: float
    """How long the host was in it, for each step."""
    device_ms: float
    """How long an accelerator worked on what it started; 0 on a CPU."""
    share: float
    """Of the time of a step: the host's on a CPU, the device's elsewhere."""


@dataclass(frozen=True, kw_only=True)
class StepProfile:
    """The parts of a step."""

    device: str
    steps: int
    """Steps that were measured."""
    step_ms: float
    """Mean time of one."""
    images_per_second: float
    """Of this process."""
    parts: tuple[Part, ...]

    @property
    def network(self) -> float:
        """Share of forward and backward."""
        return sum(part.share for part in self.parts if part.name in ("forward", "backward"))

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "network": self.network}


def profile_steps(
    run: Callable[..., object], *, images_per_step: int, on_record: Callable[[StepRecord], None] = lambda _: None
) -> StepProfile:
    """Profiles a few steps of a run in a temporary folder.

    Args:
        run: Takes a folder, `stop_after` and `on_record`.
        images_per_step: Of one process.
        on_record: Called with every record.
    """
    cuda = torch.cuda.is_available()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would talk on stderr
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with (
        tempfile.TemporaryDirectory(prefix="stepladder-profile-") as folder,
        torch.profiler.profile(activities=activities) as profiler,
    ):
        run(Path(folder, "run"), stop_after=STEPS_TAKEN, on_record=on_record)
    events = profiler.events()
    assert events is not None, "the profiler has run"
    named = [event for event in events if event.name in PARTS and str(event.device_type).endswith("CPU")]
    return _taken_apart(named, images_per_step, "cuda" if cuda else "cpu")


def _taken_apart(events: Sequence[Any], images_per_step: int, device: str) -> StepProfile:
    ordered = sorted(events, key=lambda event: event.time_range.start)
    starts = [event.time_range.start for event in ordered if event.name == "data"]
    batches = len(starts) // STEPS_TAKEN  # several for a step, where they are accumulated
    begins = starts[_WARM_UP * batches :: batches][: _STEPS + 1]
    step = (begins[-1] - begins[0]) / (len(begins) - 1) / 1e3
    inside = [event for event in ordered if begins[0] <= event.time_range.start < begins[-1]]
    parts = []
    for name in PARTS:
        found = [event for event in inside if event.name == name]
        host = sum(event.time_range.elapsed_us() for event in found) / _STEPS / 1e3
        work = sum(event.device_time_total for event in found) / _STEPS / 1e3 if device == "cuda" else 0.0
        parts.append(Part(name=name, host_ms=host, device_ms=work, share=(work if device == "cuda" else host) / step))
    return StepProfile(
        device=device,
        steps=_STEPS,
        step_ms=step,
        images_per_second=images_per_step / step * 1e3,
        parts=tuple(parts),
    )
