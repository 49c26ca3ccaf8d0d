"""What the main process writes during a run: records and pictures, also to a tracker, and the report."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from PIL import Image
from torch import nn

from stepladder.images import save_png
from stepladder.processes import Processes
from stepladder.training.batches import Batch
from stepladder.training.folder import RunFolder
from stepladder.training.records import Findings, RecordFile, RunningMeans, StepRecord
from stepladder.training.report import Report
from stepladder.training.trackers import Tracker, log_picture, log_record

__all__ = ["Average", "Journal", "Validation"]


class Validation(Protocol):
    """How a model is evaluated during a run."""

    def due(self, step: int) -> bool:
        """Whether to evaluate after this many steps; 0 is before the first."""
        ...

    def __call__(self, model: nn.Module, batch: Batch, step: int) -> tuple[Findings, Image.Image | None]:
        """Evaluates the averaged model, given a training batch: numbers, and a picture if there is one.

        All processes call it, and may share the work; what the first one gets is written.
        """
        ...


class Average(Protocol):
    """Averaged weights, on one process or divided over several."""

    def whole(self) -> AbstractContextManager[nn.Module]:
        """The model that has them; all processes open it."""
        ...


class Journal:
    """Means, records and pictures of one session of a run; other processes than the first keep means alone."""

    def __init__(
        self,
        folder: RunFolder,
        validation: Validation,
        trackers: Sequence[Tracker],
        on_record: Callable[[StepRecord], None],
        *,
        processes: Processes,
        images_per_step: int,
        step: int,
    ) -> None:
        """Opens it at `step`; records after that, of a session that was killed, are dropped."""
        self._folder, self._validation = folder, validation
        self._trackers, self._on_record = trackers, on_record
        self._images_per_step, self._step = images_per_step, step
        self._file = RecordFile(folder.records, step=step) if processes.main else None
        self._report = Report(folder.path)
        self.means = RunningMeans(self._file.seconds_before if self._file else 0.0)

    def look_at_the_start(self, average: Average, example: Batch) -> None:
        """Evaluates a new run before its first step, so that failures show now and not hours later."""
        if self._step == 0:
            self.validate(average, example, 0)

    def validate(self, average: Average, batch: Batch, step: int) -> Findings | None:
        """Evaluates the averaged model when that is due, by all processes, and writes the picture if there is one."""
        if not self._validation.due(step):
            return None
        with self.means.paused(), average.whole() as model:
            findings, picture = self._validation(model, batch, step)
            if picture is not None and self._file is not None:
                save_png(picture, self._folder.path / "grids" / f"step-{step:07d}.png", force=True)
                log_picture(self._trackers, "reconstructions", picture, step=step)
        return findings

    def record(self, step: int, rate: float, findings: Findings | None, *, last: bool) -> None:
        """Writes the means since the last record; also the report, if there are findings or it is the last record."""
        record = self.means.record(
            step=step,
            steps=self._folder.config.steps,
            images_per_step=self._images_per_step,
            rate=rate,
            findings=findings or Findings(),
        )
        if self._file is None:
            return
        self._file.write(record)
        log_record(self._trackers, record)
        with self.means.paused():
            self._report.update(at_once=findings is not None, last=last)
        self._on_record(record)
