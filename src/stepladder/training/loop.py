"""The loop of every run: an objective and batches in, a trained model, its records and checkpoints out.

    for step: batches -> loss -> backward -> clip -> optimise -> average -> save -> validate -> record

An `Objective` is trained; a task also says how to evaluate and export its averaged model. The loop does not depend on
tokenizers: the prior of `examples/generation` trains in it, too.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from stepladder.training.batches import Batch, Batches, ResumableBatches, next_batch, to_device
from stepladder.training.config import OptimiserConfig, RunConfig
from stepladder.training.folder import RunFolder
from stepladder.training.interruption import Interruption
from stepladder.training.journal import Journal, Validation
from stepladder.training.objective import Objective, batch_seed
from stepladder.training.records import StepRecord
from stepladder.training.setup import Run, set_up, start
from stepladder.training.state import save_state

__all__ = ["Task", "fit", "learning_rate"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Task:
    """An objective, its data, and what becomes of the model."""

    objective: Objective
    """The model and its loss, with the initial weights of a new run, the same on every process."""
    batches: Batches
    """What it learns from."""
    example: Batch
    """A batch of one item, of which the operations are counted."""
    validation: Validation
    """How the averaged model is evaluated, by all processes together."""
    export: Callable[[nn.Module, Path], object]
    """Writes the averaged model to the folder of the run."""


def fit(
    task: Task,
    config: RunConfig,
    folder: RunFolder,
    *,
    on_record: Callable[[StepRecord], None] = lambda _: None,
    stop_after: int | None = None,
) -> None:
    """Trains the model of a task, from the newest checkpoint in the folder on, and exports it there.

    A resumed run gives bit for bit the result of an uninterrupted one. Ctrl-C and SIGTERM leave a checkpoint.

    Args:
        task: What is learnt.
        config: The run.
        folder: Where its files go.
        on_record: Called with every record, by the main process.
        stop_after: Stop, with a checkpoint, once this many steps are taken in all; None runs to the end, and 0 takes
            none and leaves the model that the run starts from.

    Raises:
        StepladderError: If folder or checkpoint cannot be used, or gradients stop being finite.
    """
    run = set_up(task.objective, task.example, config, folder)
    with folder.locked() if run.main else nullcontext(), Interruption() as interruption:
        step = start(run)
        journal = _journal(run, task.validation, on_record, step)
        journal.look_at_the_start(run.ema, task.example.to(run.device))
        stream = _stream(run, task.batches, step)
        last, signal = config.steps if stop_after is None else min(config.steps, stop_after), None
        while step < last and signal is None:
            rate = _set_rate(run.optimiser, learning_rate(config.optimiser, step, config.steps))
            losses = []
            for micro in range(config.accumulate):
                batch = to_device(next_batch(stream), run.device)
                seed = batch_seed(config.seed, step, micro * run.processes.count + run.processes.index)
                with run.synchronised(micro == config.accumulate - 1):
                    loss, parts = _forward(run, batch, seed, step / config.steps)
                    _backward(loss / config.accumulate)
                losses.append(parts)
            norms = _clip(run)
            finite = _optimise(run, norms)
            _average(run, step)
            step += 1
            journal.means.add(losses, norms["model"], finite)
            signal = interruption.noted()
            ends = step == last or signal is not None
            if step % config.save_every == 0 or ends:
                with journal.means.paused():
                    _save(run, step, stream)
            findings = journal.validate(run.ema, batch, step)
            if step % config.log_every == 0 or ends or findings is not None:
                journal.record(step, rate, findings, last=ends)
        if signal is not None:
            _log.warning("%s: saved at step %d in %s. --resume goes on from there.", signal, step, folder.path)
        else:
            _export(run, task.export)


def learning_rate(config: OptimiserConfig, step: int, steps: int) -> float:
    """Rate of step `step` (from 0) of `steps`: linear warm-up, constant, then a line or half a cosine down to zero."""
    warm = (step + 1) / max(1, config.warmup_steps)
    decay_steps = config.decay_fraction * steps
    left = (steps - step) / decay_steps if decay_steps else 1.0
    if config.schedule == "cosine":
        left = (1 - math.cos(math.pi * min(1.0, left))) / 2
    return config.learning_rate * min(1.0, warm, left)


def _journal(run: Run, validation: Validation, on_record: Callable[[StepRecord], None], step: int) -> Journal:
    config, processes = run.config, run.processes
    return Journal(
        run.folder,
        validation,
        run.accelerator.trackers,
        on_record,
        processes=processes,
        images_per_step=config.batch_size * config.accumulate * processes.count,
        step=step,
    )


def _stream(run: Run, batches: Batches, step: int) -> Iterator[Batch]:
    """The batches of this process from a step on."""
    stream = batches(
        start_batch=step * run.config.accumulate,
        process_index=run.processes.index,
        num_processes=run.processes.count,
    )
    if isinstance(stream, ResumableBatches):
        stream.go_on(run.places)
    return stream


def _set_rate(optimiser: torch.optim.Optimizer, rate: float) -> float:
    for group in optimiser.param_groups:
        group["lr"] = group["relative_rate"] * rate
    return rate


# The parts of a step, by the names that a profiler sees (`training/profile.py`).


@record_function("forward")
def _forward(run: Run, batch: Batch, seed: int, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
    return run.loss(batch, seed, progress)


@record_function("backward")
def _backward(loss: Tensor) -> None:
    loss.backward()  # accelerate's divides by a number that its environment may hold


@record_function("clip")
def _clip(run: Run) -> dict[str, Tensor]:
    """Clips the gradients of model and discriminator separately; returns the norms before."""
    parts: dict[str, list[nn.Parameter]] = {}
    for group in run.groups:
        parts.setdefault(group.part, []).extend(group.parameters)
    limit = run.config.optimiser.clip_norm
    return {part: run.clip(parameters, limit) for part, parameters in parts.items()}


@record_function("optimise")
def _optimise(run: Run, norms: Mapping[str, Tensor]) -> Tensor:
    """Takes a step, unless a gradient is not finite; returns whether it did.

    The fused optimiser decides that on the device: the host runs ahead of it, and asks only when it writes a record.
    """
    finite = torch.stack([norm.isfinite() for norm in norms.values()]).all()
    run.inner_optimiser.found_inf = (~finite).float()  # type: ignore[attr-defined]
    run.optimiser.step()
    run.optimiser.zero_grad(set_to_none=True)
    return finite


@record_function("average")
def _average(run: Run, step: int) -> None:
    run.ema.update(run.objective.model, step)


def _save(run: Run, step: int, stream: Iterator[Batch]) -> None:
    everyone = run.processes.gather(stream.state() if isinstance(stream, ResumableBatches) else {})
    places = {lane: place for part in everyone for lane, place in part.items()}
    save_state(run.state(step, places), run.folder.checkpoints, keep=run.config.keep_checkpoints)


def _export(run: Run, export: Callable[[nn.Module, Path], object]) -> None:
    for tracker in run.accelerator.trackers:
        tracker.finish()
    with run.ema.whole() as model:
        if run.main:
            export(model, run.folder.path)
    run.accelerator.wait_for_everyone()
