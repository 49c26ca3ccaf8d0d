"""What a run works with: its processes, model, optimiser and average, new or from a checkpoint.

Several processes hold either the whole model each, and average their gradients (accelerate, DDP), or a part each
(`sharding`). Which of both, the loop does not see.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DataLoaderConfiguration, parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from stepladder.errors import CheckpointError
from stepladder.nn.blocks import channels_last
from stepladder.processes import Processes
from stepladder.training.config import RunConfig
from stepladder.training.ema import MovingAverage
from stepladder.training.folder import RunFolder
from stepladder.training.hardware import compile_networks, environment, precision_on, recomputing
from stepladder.training.objective import Objective, OptimiserGroup
from stepladder.training.sharding import ShardedAverage, alike, shard, skeleton, whole
from stepladder.training.state import RunState, load_state
from stepladder.training.trackers import check_tracker, start_tracker

__all__ = ["Run", "set_up", "start"]


@dataclass(slots=True, kw_only=True)
class Run:
    """What the loop works with."""

    config: RunConfig
    folder: RunFolder
    accelerator: Accelerator
    bf16: bool
    """Whether networks compute in bfloat16."""
    processes: Processes
    """Those that train together."""
    mesh: DeviceMesh | None
    """The same, where they hold a part of the model each."""
    objective: Objective
    wrapped: nn.Module
    """The objective; with several processes, it averages their gradients."""
    groups: list[OptimiserGroup]
    optimiser: torch.optim.Optimizer
    ema: MovingAverage | ShardedAverage
    about: dict[str, Any]
    """What the main process found out about machine and model."""
    places: dict[str, Any]
    """Where the streams of all processes were at the checkpoint."""

    @property
    def device(self) -> torch.device:
        """Of this process."""
        device: torch.device = self.accelerator.device
        return device

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return self.processes.main

    def loss(self, batch: Any, seed: int, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and its parts by name."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            loss, parts = self.wrapped(batch, seed, progress)
        return loss.float(), parts

    def synchronised(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients of accumulated batches are averaged over processes once, with the last of them.

        Those of a divided model are averaged with each batch, as nobody has room for whole ones.
        """
        return nullcontext() if last or self.mesh is not None else self.accelerator.no_sync(self.wrapped)

    def clip(self, parameters: list[nn.Parameter], limit: float) -> Tensor:
        """Scales a gradient down to a norm; the norm before."""
        return whole(torch.as_tensor(self.accelerator.clip_grad_norm_(parameters, limit)))

    @property
    def inner_optimiser(self) -> torch.optim.Optimizer:
        """Without the wrapper of accelerate."""
        inner: torch.optim.Optimizer = (
            self.optimiser.optimizer if isinstance(self.optimiser, AcceleratedOptimizer) else self.optimiser
        )
        return inner

    def state(self, step: int, places: dict[str, Any]) -> RunState:
        """All that goes on after this step."""
        discriminator = self.objective.discriminator()
        return RunState(
            step=step,
            model=self.objective.model.state_dict(),
            discriminator=discriminator.state_dict() if discriminator is not None else {},
            ema=self.ema.state_dict(),
            optimiser=self.inner_optimiser.state_dict(),
            data=places,
            config=self.objective.model_config(),
        )


def set_up(objective: Objective, example: Any, config: RunConfig, folder: RunFolder) -> Run:
    """Everything but the checkpoint; writes nothing.

    Raises:
        ConfigError: If a network or a tracker cannot do what the run asks for.
    """
    check_tracker(config)
    device = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")).device  # accelerate knows the processes now
    accelerator = Accelerator(
        mixed_precision="no",  # `Run.loss` sees to it: accelerate keeps one precision in a process for good
        dataloader_config=DataLoaderConfiguration(dispatch_batches=False),
        log_with=config.tracker,
        project_dir=folder.path / "tracker",
    )
    processes = Processes()
    divided = config.shard and processes.count > 1
    objective = objective.to(device)
    by_rows = torch.contiguous_format  # as parts are cut
    objective = objective.to(memory_format=by_rows) if divided else channels_last(objective)  # type: ignore[call-overload]
    recomputing(objective, config)
    about = environment(objective, config, example.to(device), processes.count) if processes.main else {}
    outline = skeleton(objective.model) if divided else None
    mesh = shard(objective, device) if divided else None
    groups = objective.optimiser_groups()
    return Run(
        config=config,
        folder=folder,
        accelerator=accelerator,
        bf16=precision_on(device, config) == "bf16",
        processes=processes,
        mesh=mesh,
        objective=objective,
        wrapped=objective,
        groups=groups,
        optimiser=torch.optim.AdamW(
            [{"params": group.parameters, "relative_rate": group.relative_rate} for group in groups],
            lr=config.optimiser.learning_rate,
            betas=config.optimiser.betas,
            weight_decay=config.optimiser.weight_decay,
            fused=True,
        ),
        ema=MovingAverage(objective.model, config.ema_decay)
        if outline is None
        else ShardedAverage(objective.model, outline, config.ema_decay),
        about=about,
        places={},
    )


def start(run: Run) -> int:
    """Takes over the checkpoint, if there is one, writes down what runs, and hands all to accelerate; the step.

    Raises:
        CheckpointError: If the checkpoint cannot be read, or is that of another model.
        ConfigError: If a step would take another number of images than before.
    """
    step = _restore(run)
    if run.main:
        run.folder.describe(step, run.about)
        if run.config.tracker is not None:
            start_tracker(run.accelerator, run.config, run.folder.path)
    for network in recomputing(run.objective, run.config):
        network.checkpointing = True
    if run.config.compile:
        compile_networks(run.objective)
    run.optimiser = run.accelerator.prepare(run.optimiser)
    if run.mesh is None:
        run.wrapped = run.accelerator.prepare(run.objective)
    run.objective.train()
    return step


def _restore(run: Run) -> int:
    place = run.folder.state
    if place is None:
        return 0
    state = load_state(place, run.mesh)
    model, discriminator = run.objective.model, run.objective.discriminator()
    try:
        run.objective.load_model(alike(state.model, model.state_dict(), run.mesh))
        if discriminator is not None:
            discriminator.load_state_dict(alike(state.discriminator, discriminator.state_dict(), run.mesh))
        run.ema.load_state_dict(state.ema)
        run.optimiser.load_state_dict(_moments(state.optimiser, run))
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"Checkpoint {place} does not fit this configuration. A run resumes with the network that it began with: "
            f"use {run.folder.path / 'config.json'}, or another --out."
        ) from error
    run.places = state.data
    return state.step


def _moments(optimiser: Mapping[str, Any], run: Run) -> dict[str, Any]:
    """The state of an optimiser, divided as its parameters are, or else laid out in memory as they are.

    The fused optimiser walks through both side by side, and parts that were put together are laid out by rows.
    """
    parameters = [parameter for group in run.groups for parameter in group.parameters]
    state = {}
    for number, moments in optimiser["state"].items():
        parameter = parameters[number]
        state[number] = (
            {name: _laid_out(value, parameter) for name, value in moments.items()}
            if run.mesh is None
            else alike(moments, dict.fromkeys(("exp_avg", "exp_avg_sq"), parameter), run.mesh)
        )
    return {**optimiser, "state": state}


def _laid_out(value: Tensor, parameter: nn.Parameter) -> Tensor:
    """A moment with the strides of its parameter; a counter as it is."""
    return torch.empty_like(parameter.detach()).copy_(value) if value.shape == parameter.shape else value
