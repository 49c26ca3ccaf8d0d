"""The loop of every run: an objective and batches in, a trained model, its records and checkpoints out.

    for step: batches -> loss -> backward -> clip -> optimise -> average -> save -> validate -> record

What is learnt is an `Objective`; how its averaged model is judged and exported is handed in beside it. The loop knows
of no tokenizer: the prior of `examples/generation` trains in it, too.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator, PartialState
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DataLoaderConfiguration, parse_flag_from_env
from torch import Tensor, nn
from torch.profiler import record_function

from stepladder.errors import CheckpointError
from stepladder.nn.blocks import channels_last
from stepladder.processes import Processes
from stepladder.training.batches import ResumableBatches, next_batch, to_device
from stepladder.training.config import OptimiserConfig, RunConfig
from stepladder.training.ema import MovingAverage
from stepladder.training.folder import RunFolder
from stepladder.training.hardware import compile_networks, environment, precision_on, recomputing
from stepladder.training.interruption import Interruption
from stepladder.training.journal import Journal, Validation
from stepladder.training.objective import Objective, OptimiserGroup, batch_seed
from stepladder.training.records import StepRecord
from stepladder.training.state import RunState, load_state, save_state
from stepladder.training.trackers import check_tracker, start_tracker

__all__ = ["Batches", "Task", "fit", "learning_rate"]

_log = logging.getLogger(__name__)


class Batches(Protocol):
    """Endless batches of one process, a function of their place: tensors, or what has a method `to(device)`."""

    def __call__(self, *, start_batch: int, process_index: int, num_processes: int) -> Iterator[Any]:
        """The batches of a process from number `start_batch` on."""
        ...


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a run learns, from what, and what it leaves."""

    objective: Objective
    """The model and its loss; on every process with the same weights, those that a new run starts from."""
    batches: Batches
    """What it learns from."""
    example: Any
    """A batch of one item, of which the operations are counted."""
    validation: Validation
    """How the averaged model is judged, by all processes together."""
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

    A run that goes on is bit for bit one that was never interrupted. Ctrl-C and SIGTERM leave a checkpoint.

    Args:
        task: What is learnt.
        config: The run.
        folder: Where its files go.
        on_record: Called with every record, by the main process.
        stop_after: Stop, with a checkpoint, once this many steps are taken in all; None runs to the end.

    Raises:
        StepladderError: If folder or checkpoint cannot be used, or gradients stop being finite.
    """
    run = _set_up(task, config, folder)
    with folder.locked() if run.main else nullcontext(), Interruption() as interruption:
        step = _start(run, task.example)
        journal = _journal(run, task.validation, on_record, step)
        journal.look_at_the_start(run.averaged, task.example.to(run.device))
        stream = _stream(run, task.batches, step)
        last, signal = min(config.steps, stop_after or config.steps), None
        while step < last and signal is None:
            rate = _set_rate(run.optimiser, learning_rate(config.optimiser, step, config.steps))
            losses = []
            for micro in range(config.accumulate):
                batch = to_device(next_batch(stream), run.device)
                seed = batch_seed(config.seed, step, micro * run.processes.count + run.processes.index)
                with run.synchronised(micro == config.accumulate - 1):
                    loss, parts = _forward(run, batch, seed, step / config.steps)
                    _backward(run, loss / config.accumulate)
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
            findings = journal.validate(run.averaged, batch, step)
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


@dataclass(slots=True, kw_only=True)
class _Run:
    """What the loop works with."""

    config: RunConfig
    folder: RunFolder
    accelerator: Accelerator
    objective: Objective
    wrapped: nn.Module
    """The objective; with several processes, it averages their gradients."""
    groups: list[OptimiserGroup]
    optimiser: torch.optim.Optimizer
    ema: MovingAverage
    processes: Processes
    """Those that train together."""
    places: dict[str, Any]
    """Where the streams of all processes were at the checkpoint."""

    @property
    def device(self) -> torch.device:
        device: torch.device = self.accelerator.device
        return device

    @property
    def main(self) -> bool:
        return self.processes.main

    @property
    def averaged(self) -> nn.Module:
        """The model with averaged weights: what is judged and exported."""
        return self.ema.module

    def synchronised(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients of accumulated batches are averaged over processes once, with the last of them."""
        return nullcontext() if last else self.accelerator.no_sync(self.wrapped)


def _set_up(task: Task, config: RunConfig, folder: RunFolder) -> _Run:
    """Everything but the checkpoint; writes nothing."""
    check_tracker(config)
    accelerator = Accelerator(
        mixed_precision=precision_on(_processes().device, config),
        gradient_accumulation_steps=1,
        dataloader_config=DataLoaderConfiguration(dispatch_batches=False),
        log_with=config.tracker,
        project_dir=folder.path / "tracker",
    )
    objective = channels_last(task.objective.to(accelerator.device))
    recomputing(objective, config)
    groups = objective.optimiser_groups()
    ema = MovingAverage(objective.model, config.ema_decay)
    optimiser = torch.optim.AdamW(
        [{"params": group.parameters, "relative_rate": group.relative_rate} for group in groups],
        lr=config.optimiser.learning_rate,
        betas=config.optimiser.betas,
        weight_decay=config.optimiser.weight_decay,
        fused=True,
    )
    return _Run(
        config=config,
        folder=folder,
        accelerator=accelerator,
        objective=objective,
        wrapped=objective,
        groups=groups,
        optimiser=optimiser,
        ema=ema,
        processes=Processes(),
        places={},
    )


def _processes() -> PartialState:
    """The processes of the run, which accelerate knows from here on; on the CPU where its environment says so."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def _start(run: _Run, example: Any) -> int:
    """Takes over the checkpoint, if there is one, writes down what runs, and hands all to accelerate; the step."""
    step = _restore(run)
    if run.main:
        found = environment(run.objective, run.config, example.to(run.device), run.processes.count)
        run.folder.describe(step, found)
        if run.config.tracker is not None:
            start_tracker(run.accelerator, run.config, run.folder.path)
    for network in recomputing(run.objective, run.config):
        network.checkpointing = True
    if run.config.compile:
        compile_networks(run.objective)
    run.wrapped, run.optimiser = run.accelerator.prepare(run.objective, run.optimiser)
    run.objective.train()
    return step


def _restore(run: _Run) -> int:
    place = run.folder.state
    if place is None:
        return 0
    state = load_state(place)
    try:
        run.objective.load_model(state.model)
        discriminator = run.objective.discriminator()
        if discriminator is not None:
            discriminator.load_state_dict(state.discriminator)
        run.ema.load_state_dict(state.ema)
        run.optimiser.load_state_dict(state.optimiser)
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"Checkpoint {place} does not fit this configuration. A run resumes with the network that it began with: "
            f"use {run.folder.path / 'config.json'}, or another --out."
        ) from error
    run.places = state.data
    return state.step


def _journal(run: _Run, validation: Validation, on_record: Callable[[StepRecord], None], step: int) -> Journal:
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


def _stream(run: _Run, batches: Batches, step: int) -> Iterator[Any]:
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
def _forward(run: _Run, batch: Any, seed: int, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
    loss, parts = run.wrapped(batch, seed, progress)
    return loss, parts


@record_function("backward")
def _backward(run: _Run, loss: Tensor) -> None:
    run.accelerator.backward(loss)


@record_function("clip")
def _clip(run: _Run) -> dict[str, Tensor]:
    """Clips the gradient of each part, the discriminator's apart from the model's; the norms before."""
    parts: dict[str, list[nn.Parameter]] = {}
    for group in run.groups:
        parts.setdefault(group.part, []).extend(group.parameters)
    limit = run.config.optimiser.clip_norm
    return {
        part: torch.as_tensor(run.accelerator.clip_grad_norm_(parameters, limit)) for part, parameters in parts.items()
    }


@record_function("optimise")
def _optimise(run: _Run, norms: Mapping[str, Tensor]) -> Tensor:
    """Takes a step, unless a gradient is not finite; whether it did.

    The fused optimiser decides that on the device: the host runs ahead of it, and asks only when it writes a record.
    """
    finite = torch.stack([norm.isfinite() for norm in norms.values()]).all()
    inner = run.optimiser.optimizer if isinstance(run.optimiser, AcceleratedOptimizer) else run.optimiser
    inner.found_inf = (~finite).float()  # type: ignore[union-attr]
    run.optimiser.step()
    run.optimiser.zero_grad(set_to_none=True)
    return finite


@record_function("average")
def _average(run: _Run, step: int) -> None:
    run.ema.update(run.objective.model, step)


def _save(run: _Run, step: int, stream: Iterator[Any]) -> None:
    everyone = run.processes.gather(stream.state() if isinstance(stream, ResumableBatches) else {})
    if run.main:
        discriminator = run.objective.discriminator()
        state = RunState(
            step=step,
            model=run.objective.model.state_dict(),
            discriminator=discriminator.state_dict() if discriminator is not None else {},
            ema=run.ema.state_dict(),
            optimiser=run.optimiser.state_dict(),
            data={lane: place for places in everyone for lane, place in places.items()},
        )
        save_state(state, run.folder.checkpoints, keep=run.config.keep_checkpoints)
    run.accelerator.wait_for_everyone()


def _export(run: _Run, export: Callable[[nn.Module, Path], object]) -> None:
    for tracker in run.accelerator.trackers:
        tracker.finish()
    if run.main:
        export(run.averaged, run.folder.path)
    run.accelerator.wait_for_everyone()
