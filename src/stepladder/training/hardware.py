"""Compilation, recomputed activations, precision, and counted operations of a run."""

import copy
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch

from stepladder.devices import has_fast_bfloat16
from stepladder.errors import ConfigError
from stepladder.measure.profiling import count_flops, describe_environment, peak_flops
from stepladder.training.batches import Batch
from stepladder.training.config import RunConfig
from stepladder.training.objective import Objective

__all__ = ["compile_networks", "environment", "precision_on", "recomputing"]

_RECOMPILE_LIMIT = 64
"""Graphs for one piece of code. Student and teacher share theirs, and every stage of each is a graph, with gradients
and without: 8 stages (the most) x 2 networks x 2, twice over."""


@runtime_checkable
class Recomputing(Protocol):
    """A network that can recompute its activations instead of storing them."""

    can_checkpoint: ClassVar[bool]
    checkpointing: bool


def recomputing(objective: Objective, config: RunConfig) -> list[Recomputing]:
    """The networks that should recompute their activations instead of storing them.

    Raises:
        ConfigError: If that is configured, and no network can.
    """
    if not config.gradient_checkpointing:
        return []
    networks: list[Recomputing] = [
        each for each in objective.networks() if isinstance(each, Recomputing) and each.can_checkpoint
    ]
    if not networks:
        raise ConfigError(
            "gradient_checkpointing is true, and no network of this run can compute its activations again. Accepted: "
            "networks of kind 'mmdit'. Set it to false."
        )
    return networks


def compile_networks(objective: Objective) -> None:
    """Compiles each network for every shape, each stage separately."""
    torch._dynamo.config.recompile_limit = max(_RECOMPILE_LIMIT, torch._dynamo.config.recompile_limit)
    for network in objective.networks():
        network.compile(dynamic=False)


def precision_on(device: torch.device, config: RunConfig) -> Literal["no", "bf16"]:
    """The precision of a run on a device."""
    if config.precision != "auto":
        return config.precision
    return "bf16" if has_fast_bfloat16(device) else "no"


def environment(objective: Objective, config: RunConfig, example: Batch, processes: int) -> dict[str, Any]:
    """Hardware and versions of a run, and its operations."""
    precision = precision_on(example.device, config)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return describe_environment(example.device) | {
        "precision": precision,
        "processes": processes,
        "peak_gflops": peak_flops(example.device, dtype) / 1e9,
        "training_gflop_per_image": _training_flops(objective, example) / 1e9,
    }


def _training_flops(objective: Objective, example: Batch) -> float:
    """Operations of forward and backward for one item, on a copy that is then thrown away.

    In evaluation mode: the main process counts alone, and a codebook in training mode waits for the others.
    """
    twin = copy.deepcopy(objective).eval()

    def step() -> None:
        loss, _ = twin(example, 0, 0.0)
        loss.backward()

    return count_flops(step)
