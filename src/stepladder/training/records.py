"""The numbers of a run: `records.jsonl`, one JSON object a line, and the means that go into it."""

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stepladder.errors import OutputError, TrainingError
from stepladder.files import reason, write_atomically

__all__ = [
    "Findings",
    "RecordFile",
    "RunningMeans",
    "StepRecord",
    "loss_title",
    "read_records",
    "row_title",
    "write_text",
]


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One line of `records.jsonl`; means over the steps since the line before."""

    step: int
    steps: int
    """Steps of the whole run."""
    images_seen: int
    seconds: float
    """Seconds of training so far, over all sessions of the run."""
    images_per_second: float
    learning_rate: float
    gradient_norm: float | None
    """Of the model; None where every step since the line before was skipped."""
    loss: float | None
    """Sum of the weighted losses; of the model, where a discriminator learns beside it."""
    losses: dict[str, float]
    """Each loss by name, before its weight; those of stages end in the stage, coarse first. Also statistics of the
    bottleneck, such as the perplexity of its codebook."""
    skipped_steps: int = 0
    """Steps since the line before that were skipped because their gradient was not finite."""
    validation_psnr_db: dict[str, float] | None = None
    """PSNR of the averaged weights on the validation images, by steps per stage; 'initial' is the initial estimate,
    where the decoder makes one."""
    stage_residuals: list[float] | None = None
    """Standard deviation of what the network adds at each stage, coarse first, on [-1, 1]."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Results of evaluating averaged weights, for the record of the step."""

    losses: dict[str, float] | None = None
    """Losses beside those of the steps."""
    psnr_db: dict[str, float] | None = None
    """`StepRecord.validation_psnr_db`."""
    stage_residuals: list[float] | None = None
    """`StepRecord.stage_residuals`."""


_MOST_SKIPPED = 10
"""So many steps in a row without a finite gradient end a run."""


class RecordFile:
    """Appends records; on resume it drops those after the step from which the run continues."""

    def __init__(self, path: Path, *, step: int) -> None:
        """Opens it at `step`, the one from which the run goes on."""
        self.path = path
        kept = [record for record in read_records(path) if record["step"] <= step]
        self.seconds_before = kept[-1]["seconds"] if kept else 0.0
        write_text(path, "".join(json.dumps(record) + "\n" for record in kept))

    def write(self, record: StepRecord) -> None:
        """Appends a line.

        Raises:
            OutputError: If the disk refuses.
        """
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(record)) + "\n")
        except OSError as error:
            raise OutputError(
                f"Cannot write {self.path}: {reason(error)}. Free space there, then continue with --resume."
            ) from error


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records in a file, as plain data; none where there is no file."""
    records: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                break  # a kill came while this line was written
    return records


def row_title(name: str) -> str:
    """What a row of a grid, or a number of `validation_psnr_db`, is called for a reader."""
    match name:
        case "initial":
            return "initial estimate"
        case _ if name.isdigit():
            return f"{name} step per stage" if name == "1" else f"{name} steps per stage"
        case _:
            return name  # of another version


def loss_title(name: str) -> str:
    """What a number of `losses` is called for a reader."""
    stem, _, stage = name.rpartition("_")
    if stem and stage.isdigit():
        return f"{loss_title(stem)}, stage {stage}"
    match name:
        case "flow" | "perceptual" | "bottleneck" | "adversarial" | "discriminator":
            return f"{name} loss"
        case "initial":
            return "loss of the initial estimate"
        case "pixels":
            return "pixel loss"
        case "teacher":
            return "distance to the teacher"
        case _:
            return name.replace("_", " ")


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all, in place of one that is there; makes its folder.

    Raises:
        OutputError: If the disk refuses.
    """
    write_atomically(path, lambda place: place.write_text(text, encoding="utf-8"), force=True)


class RunningMeans:
    """Means for the next record. Validation and saving do not count as training time."""

    def __init__(self, seconds: float) -> None:
        """Begins, `seconds` of training after the start of the run."""
        self.seconds = seconds
        self._mark = time.perf_counter()
        self._skipped_in_a_row = 0
        self._reset()

    def _reset(self) -> None:
        self._since = self.seconds
        self._rows: list[Tensor] = []
        self._finite: list[Tensor] = []
        self._names: tuple[str, ...] = ()

    def add(self, batches: Sequence[dict[str, Tensor]], norm: Tensor, finite: Tensor) -> None:
        """Takes in the batches of one step; nothing is moved off the device before a record needs it.

        Args:
            batches: Losses of each.
            norm: Of the gradient.
            finite: Whether the gradient was, so that the step was taken.
        """
        self._names = ("gradient_norm", *batches[0])
        rows = [
            torch.stack([value.detach().float().reshape(()) for value in (norm, *losses.values())])
            for losses in batches
        ]
        self._rows.append(torch.stack(rows).mean(0))
        self._finite.append(finite)

    def _taken(self, step: int) -> list[bool]:
        """Whether each step was taken, up to this one.

        Raises:
            TrainingError: If many in a row were not.
        """
        taken: list[bool] = torch.stack(self._finite).tolist() if self._finite else []
        for place, finite in enumerate(taken, start=step + 1 - len(taken)):
            self._skipped_in_a_row = 0 if finite else self._skipped_in_a_row + 1
            if self._skipped_in_a_row == _MOST_SKIPPED:
                raise TrainingError(
                    f"The gradient was not finite in {_MOST_SKIPPED} steps in a row, up to step {place}. One such step "
                    "is left out, so many mean that the run is lost. Start a new one with a lower "
                    "optimiser.learning_rate."
                )
        return taken

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock."""
        self._tick()
        yield
        self._mark = time.perf_counter()

    def record(self, *, step: int, steps: int, images_per_step: int, rate: float, findings: Findings) -> StepRecord:
        """Means since the last record."""
        taken = self._taken(step)
        rows = torch.stack(self._rows)[taken] if any(taken) else None
        means = {} if rows is None else dict(zip(self._names, rows.mean(0).tolist(), strict=True))
        self._tick()
        record = StepRecord(
            step=step,
            steps=steps,
            images_seen=step * images_per_step,
            seconds=self.seconds,
            images_per_second=len(taken) * images_per_step / max(1e-9, self.seconds - self._since),
            learning_rate=rate,
            gradient_norm=means.pop("gradient_norm", None),
            loss=means.pop("total", None),
            losses=means | (findings.losses or {}),
            skipped_steps=taken.count(False),
            validation_psnr_db=findings.psnr_db,
            stage_residuals=findings.stage_residuals,
        )
        self._reset()
        return record

    def _tick(self) -> None:
        now = time.perf_counter()
        self.seconds += now - self._mark
        self._mark = now
