"""The loop of every run: batches in, a trained tokenizer and its records out.

What is learnt is an `Objective`; the loop knows no more of it than its loss and its parameters.

A run folder holds

    config.json        the resolved configuration, which repeats the run
    environment.json   hardware, versions, commit, measured peak and operations of a step
    records.jsonl      numbers of the run
    grids/             reconstructions of validation images at intervals
    checkpoints/       the newest states, for --resume
    model/             the averaged weights, loadable by `Tokenizer.from_pretrained`
"""

import contextlib
import copy
import itertools
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch import Tensor, nn

from stepladder.data import evaluation_images, open_source, training_loader
from stepladder.errors import CheckpointError, ConfigError, DataError, OutputError, TrainingError
from stepladder.layouts import TokenLayout
from stepladder.measure.profiling import count_flops, describe_environment, matmul_peak
from stepladder.nn.blocks import channels_last
from stepladder.tokenizer import Tokenizer
from stepladder.training.config import OptimiserConfig, RunConfig, dump
from stepladder.training.ema import make_ema
from stepladder.training.objective import Objective, batch_seed
from stepladder.training.records import RecordFile, StepRecord, validate, write_text
from stepladder.training.state import RunState, latest_state, load_state, save_state

__all__ = ["learning_rate", "run"]

_log = logging.getLogger(__name__)


def run(
    config: RunConfig,
    make_objective: Callable[[], Objective],
    run_dir: Path,
    *,
    resume: bool = False,
    on_record: Callable[[StepRecord], None] = lambda _: None,
    stop_after: int | None = None,
) -> Path:
    """Trains the tokenizer of an objective.

    Args:
        config: The run.
        make_objective: Called once on each process, with the same result; its weights are those that a new run starts
            from.
        run_dir: Where its files go; without `resume` it must hold no run yet.
        resume: Go on from the newest checkpoint there, bit for bit as if never interrupted.
        on_record: Called with every record, by the main process.
        stop_after: Stop, with a checkpoint, once this many steps are taken in all; None runs to the end.

    Returns:
        Folder of the trained tokenizer (averaged weights).

    Raises:
        OutputError: If the folder holds another run, or cannot be written.
        DataError: If the data cannot be used.
        TrainingError: If the loss stops being finite.
    """
    this = _Run(config, make_objective, run_dir, resume=resume, on_record=on_record)
    return this.go(min(config.steps, stop_after or config.steps))


def learning_rate(config: OptimiserConfig, step: int, steps: int) -> float:
    """Rate of step `step` (from 0) of `steps`: linear warm-up, constant, then a line or half a cosine down to zero."""
    warm = (step + 1) / max(1, config.warmup_steps)
    decay_steps = config.decay_fraction * steps
    left = (steps - step) / decay_steps if decay_steps else 1.0
    if config.schedule == "cosine":
        left = (1 - math.cos(math.pi * min(1.0, left))) / 2
    return config.learning_rate * min(1.0, warm, left)


class _Run:
    """What one call of `run` holds between its parts."""

    def __init__(
        self,
        config: RunConfig,
        make_objective: Callable[[], Objective],
        run_dir: Path,
        *,
        resume: bool,
        on_record: Callable[[StepRecord], None],
    ) -> None:
        self.config, self.run_dir, self.on_record = config, run_dir, on_record
        self.accelerator = Accelerator(
            mixed_precision=config.precision,
            gradient_accumulation_steps=1,
            dataloader_config=DataLoaderConfiguration(dispatch_batches=False),
        )
        self.device = self.accelerator.device
        self.source = open_source(config.data.train)
        place = _find_state(run_dir, resume=resume)
        self.objective = channels_last(make_objective().to(self.device))
        self.tokenizer = self.objective.tokenizer
        _check_crop(config, self.tokenizer)
        recomputing = _recomputing(config, self.objective)
        self.groups = self.objective.parameter_groups()
        self.ema = make_ema(self.tokenizer, config.ema_decay)
        optimiser = torch.optim.AdamW(
            [{"params": group.parameters, "relative_rate": group.relative_rate} for group in self.groups],
            lr=config.optimiser.learning_rate,
            betas=config.optimiser.betas,
            weight_decay=config.optimiser.weight_decay,
            fused=True,
        )
        self.step = 0
        if place is not None:
            self.step = self._restore(place, optimiser)
        if self.accelerator.is_main_process:
            self._describe()
        for network in recomputing:
            network.checkpointing = True
        if config.compile:
            for network in self.objective.networks():
                network.compile()
        self.wrapped, self.optimiser = self.accelerator.prepare(self.objective, optimiser)
        self.validation = self._validation_images()

    def _restore(self, place: Path, optimiser: torch.optim.Optimizer) -> int:
        """Takes over a checkpoint and returns its step."""
        state = load_state(place)
        try:
            self.tokenizer.load_state_dict(state.model)
            opponent = self.objective.opponent()
            if opponent is not None:
                opponent.load_state_dict(state.opponent)
            self.ema.load_state_dict(state.ema)
            optimiser.load_state_dict(state.optimiser)
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"Checkpoint {place} does not fit this configuration. A run resumes with the network that it began "
                f"with: use {self.run_dir / 'config.json'}, or another --out."
            ) from error
        return state.step

    def go(self, last: int) -> Path:
        """Runs to step `last`."""
        config = self.config
        main = self.accelerator.is_main_process
        records = RecordFile(self.run_dir / "records.jsonl", step=self.step) if main else None
        batches = self._batches()
        meter = _Meter(records.seconds_before if records else 0.0)
        self.objective.train()
        while self.step < last:
            meter.add(*self._optimise(batches))
            self.step += 1
            at_end = self.step == last
            psnr = None
            if (
                main
                and config.grid_every
                and self.validation is not None
                and (self.step % config.grid_every == 0 or self.step == config.steps)
            ):
                with meter.paused():
                    psnr = self._validate()
            if main and records and (self.step % config.log_every == 0 or at_end or psnr):
                record = self._record(meter, psnr)
                records.write(record)
                self.on_record(record)
            if self.step % config.save_every == 0 or at_end:
                with meter.paused():
                    self._save()
        self.accelerator.wait_for_everyone()
        if main:
            self._averaged().save_pretrained(self.run_dir / "model")
        self.accelerator.wait_for_everyone()
        return self.run_dir / "model"

    def _optimise(self, batches: Iterator[Tensor]) -> tuple[list[dict[str, Tensor]], Tensor]:
        """One optimiser step over `accumulate` batches; their losses, and the norm of the tokenizer's gradient."""
        config = self.config
        for group in self.optimiser.param_groups:
            group["lr"] = group["relative_rate"] * learning_rate(config.optimiser, self.step, config.steps)
        results = []
        for micro in range(config.accumulate):
            images = next(batches).to(self.device, memory_format=torch.channels_last, non_blocking=True)
            seed = batch_seed(config.seed, self.step, micro, self.accelerator.process_index)
            last = micro == config.accumulate - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                loss, losses = self.wrapped(images, seed, self.step / config.steps)
                self.accelerator.backward(loss / config.accumulate)
            results.append(losses)
        norms = self._clip()
        if not all(torch.isfinite(norm) for norm in norms.values()):
            raise TrainingError(
                f"The gradient is not finite at step {self.step}. Resume from the last checkpoint with a lower "
                "optimiser.learning_rate."
            )
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.ema.update_parameters(self.tokenizer)
        return results, norms["tokenizer"]

    def _clip(self) -> dict[str, Tensor]:
        """Clips the gradient of each player, and returns the norms before."""
        players: dict[str, list[nn.Parameter]] = {}
        for group in self.groups:
            players.setdefault(group.player, []).extend(group.parameters)
        limit = self.config.optimiser.clip_norm
        return {
            player: torch.as_tensor(self.accelerator.clip_grad_norm_(parameters, limit))
            for player, parameters in players.items()
        }

    def _batches(self) -> Iterator[Tensor]:
        config = self.config
        return training_loader(
            self.source,
            crop=config.data.crop,
            batch_size=config.batch_size,
            seed=config.seed,
            process_index=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
            num_workers=config.data.workers,
            start_batch=self.step * config.accumulate,
        )

    def _validation_images(self) -> Tensor | None:
        data = self.config.data
        if not data.validation or not self.accelerator.is_main_process:
            return None
        found = evaluation_images(open_source(data.validation), size=data.validation_size, limit=data.validation_images)
        images = [image for _, image in itertools.islice(found, data.validation_images)]
        if not images:
            raise DataError(f"No image can be read in data.validation {data.validation}. Pass other images, or none.")
        return torch.stack(images).to(self.device)

    def _validate(self) -> dict[str, float]:
        assert self.validation is not None
        tokenizer = self._averaged()
        picture = self.run_dir / "grids" / f"step-{self.step:07d}.png"
        return validate(tokenizer, self.validation, steps=sorted({1, tokenizer.steps_per_stage}), picture=picture)

    def _averaged(self) -> Tokenizer:
        """The tokenizer with averaged weights: what is validated and exported."""
        tokenizer = self.ema.module
        assert isinstance(tokenizer, Tokenizer)
        return tokenizer

    def _record(self, meter: "_Meter", psnr: dict[str, float] | None) -> StepRecord:
        images = self.config.batch_size * self.config.accumulate * self.accelerator.num_processes
        return meter.record(
            step=self.step,
            steps=self.config.steps,
            images_per_step=images,
            rate=learning_rate(self.config.optimiser, self.step - 1, self.config.steps),
            psnr=psnr,
        )

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            opponent = self.objective.opponent()
            state = RunState(
                step=self.step,
                model=self.tokenizer.state_dict(),
                opponent=opponent.state_dict() if opponent is not None else {},
                ema=self.ema.state_dict(),
                optimiser=self.optimiser.state_dict(),
            )
            save_state(state, self.run_dir / "checkpoints", keep=self.config.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def _describe(self) -> None:
        """Writes `config.json` and `environment.json`."""
        write_text(self.run_dir / "config.json", dump(self.config) + "\n")
        dtype = torch.bfloat16 if self.config.precision == "bf16" else torch.float32
        environment: dict[str, Any] = describe_environment(self.device)
        environment |= {
            "processes": self.accelerator.num_processes,
            "matmul_peak_gflops": matmul_peak(self.device, dtype) / 1e9,
            "training_gflop_per_image": _training_flops(self.objective, self.config) / 1e9,
        }
        write_text(self.run_dir / "environment.json", json.dumps(environment, indent=2) + "\n")


class _Meter:
    """Sums of what the next record will say. Validation and saving do not count as training time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._mark = time.perf_counter()
        self._reset()

    def _reset(self) -> None:
        self._since = self.seconds
        self._sums: list[Tensor] = []

    def add(self, batches: Sequence[dict[str, Tensor]], norm: Tensor) -> None:
        """Takes in the batches of one step; nothing is moved off the device before a record needs it."""
        self._names = ("gradient_norm", *batches[0])
        rows = [
            torch.stack([value.detach().float().reshape(()) for value in (norm, *losses.values())])
            for losses in batches
        ]
        self._sums.append(torch.stack(rows).mean(0))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock."""
        self._tick()
        yield
        self._mark = time.perf_counter()

    def record(
        self, *, step: int, steps: int, images_per_step: int, rate: float, psnr: dict[str, float] | None
    ) -> StepRecord:
        """Means since the last record."""
        count = len(self._sums)
        means = dict(zip(self._names, torch.stack(self._sums).mean(0).tolist(), strict=True))
        self._tick()
        record = StepRecord(
            step=step,
            steps=steps,
            images_seen=step * images_per_step,
            seconds=self.seconds,
            images_per_second=count * images_per_step / max(1e-9, self.seconds - self._since),
            learning_rate=rate,
            gradient_norm=means.pop("gradient_norm"),
            loss=means.pop("total"),
            losses=means,
            validation_psnr_db=psnr,
        )
        self._reset()
        return record

    def _tick(self) -> None:
        now = time.perf_counter()
        self.seconds += now - self._mark
        self._mark = now


def _find_state(run_dir: Path, *, resume: bool) -> Path | None:
    place = latest_state(run_dir / "checkpoints") if run_dir.exists() else None
    if resume:
        if place is None:
            _log.warning("No checkpoint in %s: the run starts at step 0.", run_dir)
        return place
    if place is not None or (run_dir / "records.jsonl").exists():
        raise OutputError(f"{run_dir} holds a run already. Pass --resume to go on with it, or another --out.")
    return None


def _check_crop(config: RunConfig, tokenizer: Tokenizer) -> None:
    size, multiple = config.data.crop.size, tokenizer.side_multiple
    if isinstance(tokenizer.layout, TokenLayout) and size != tokenizer.layout.side:
        raise ConfigError(
            f"data.crop.size {size} is not {tokenizer.layout.side}, the one side that the model takes. Set it to that."
        )
    if size % multiple:
        raise ConfigError(
            f"data.crop.size {size} is not a multiple of {multiple}, which encoder and coarsest stage need. "
            f"Use {max(1, round(size / multiple)) * multiple}."
        )


def _recomputing(config: RunConfig, objective: Objective) -> list[Any]:
    """The networks that shall compute their activations again instead of keeping them."""
    if not config.gradient_checkpointing:
        return []
    networks = [network for network in objective.networks() if getattr(network, "can_checkpoint", False)]
    if not networks:
        raise ConfigError(
            "gradient_checkpointing is true, and no network of this run can compute its activations again. Accepted: "
            "networks of kind 'mmdit'. Set it to false."
        )
    return networks


def _training_flops(objective: Objective, config: RunConfig) -> float:
    """Operations of forward and backward for one image, on a copy that is then thrown away."""
    twin = copy.deepcopy(objective).train()
    size = config.data.crop.size
    image = torch.zeros(1, 3, size, size, device=next(twin.parameters()).device)

    def step() -> None:
        loss, _ = twin(image, 0, 0.0)
        loss.backward()

    return count_flops(step)
