"""What `train` and `distill` share: their options, and progress on stderr."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from stepladder.cli._output import print_text, rate, say, shown, talk
from stepladder.errors import TrainingError
from stepladder.memory import is_out_of_memory

if TYPE_CHECKING:
    from stepladder.training.records import StepRecord

__all__ = ["Config", "DryRun", "Overrides", "Resume", "RunFolder", "Tracker", "carry_out", "with_tracker"]

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="TOML or JSON file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Change a value; may be repeated.", show_default=False),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint of the run.")]
Tracker = Annotated[
    str | None,
    typer.Option(
        "--tracker",
        metavar="NAME",
        help="Where records go beside the run folder: 'tensorboard' or 'wandb'.",
        show_default=False,
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration and stop.")]
RunFolder = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Folder of the run; by default runs/CONFIG.", show_default=False),
]


class Run(Protocol):
    """A run whose configuration is bound."""

    def __call__(self, run_dir: Path, *, resume: bool, on_record: "Callable[[StepRecord], None]") -> Path:
        """Runs it and returns the folder of the model."""
        ...


def with_tracker(overrides: list[str] | None, tracker: str | None) -> list[str]:
    """Changes of a configuration, the tracker among them where one is named."""
    return [*(overrides or []), *([] if tracker is None else [f"tracker={tracker}"])]


def carry_out(run: Run, folder: Path, *, steps: int, resume: bool, verb: str) -> None:
    """Runs with progress on stderr, and prints the folder of the model."""
    speaks = os.environ.get("RANK", "0") == "0"  # of several processes, one
    if speaks:
        say(f"{verb} in {shown(folder)}, {steps} {'step' if steps == 1 else 'steps'}.")
    try:
        with _Board() as board:
            model = run(folder, resume=resume, on_record=board.show)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            "Not enough memory. Set batch_size or data.crop.size smaller, or gradient_checkpointing to true where the "
            "network can; accumulate makes up for a smaller batch."
        ) from error
    if speaks:
        print_text(shown(model))


class _Board:
    """Progress on stderr: a bar on a terminal, a line for each record elsewhere."""

    def __init__(self) -> None:
        console = talk()
        self._live = console.is_terminal
        columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"))
        self._progress = Progress(*columns, console=console, disable=not self._live)
        self._task = self._progress.add_task("starting", total=None)

    def __enter__(self) -> "_Board":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def _tell(self, line: str) -> None:
        self._progress.console.print(line, highlight=False, soft_wrap=True)

    def show(self, record: "StepRecord") -> None:
        """Takes in a record."""
        from stepladder.training.records import row_title

        left = (record.steps - record.step) * record.seconds / record.step
        loss = "none" if record.loss is None else f"{record.loss:.4f}"
        words = f"loss {loss}  {rate(record.images_per_second)} images/s  {_clock(left)} left"
        if record.skipped_steps:
            self._tell(f"step {record.step}: {record.skipped_steps} skipped, because the gradient was not finite")
        if record.validation_psnr_db:
            quality = ", ".join(
                f"{row_title(name)} {value:.2f} dB" for name, value in record.validation_psnr_db.items()
            )
            self._tell(f"step {record.step}: PSNR of the validation images: {quality}")
        if self._live:
            self._progress.update(self._task, completed=record.step, total=record.steps, description=words)
        else:
            say(f"step {record.step}/{record.steps}  {words}")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
