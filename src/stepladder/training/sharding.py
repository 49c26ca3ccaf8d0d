"""Weights, gradients, moments and averages divided over processes, by FSDP2 of torch.

Each process holds a part of every parameter, cut along its first dimension. A block of a network gathers its weights
when it is called and lets them go after that; whatever lies outside of blocks is gathered for the whole forward.
Gradients are averaged and cut in the same way, and the optimiser works on parts. accelerate is asked for none of this,
as it leaves its own plugin out on processors. Buffers are whole on every process, and the same: bottlenecks, which
alone have any that change, see to that.

Parts are stored as safetensors, each process its own, and are read by any number of processes
(`torch.distributed.checkpoint`). `torch.distributed.checkpoint.hf_storage.consolidate_safetensors_files` makes one
file of them.

Reference: PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel (Zhao et al., 2023),
https://arxiv.org/abs/2304.11277
"""

import contextlib
import copy
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor, empty

from stepladder.training.ema import ema_decay
from stepladder.training.objective import Objective

__all__ = [
    "ShardedAverage",
    "alike",
    "merged",
    "read_shards",
    "shard",
    "skeleton",
    "split",
    "whole",
    "write_shards",
]

_CUT = (Shard(0),)


def shard(objective: Objective, device: torch.device) -> DeviceMesh:
    """Divides the model and the discriminator of an objective over all processes, whose weights are the same so far.

    Networks that only judge, such as a teacher, stay whole: several backward passes go through them in one step, and
    after the first a divided one has let its weights go.

    Returns:
        The processes.
    """
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    blocks = [block for module in objective.model.modules() if isinstance(module, nn.ModuleList) for block in module]
    for block in reversed(blocks):  # inner ones first
        fully_shard(block, mesh=mesh)
    discriminator = objective.discriminator()
    divided = {*objective.model.parameters(), *(discriminator.parameters() if discriminator is not None else ())}
    fully_shard(objective, mesh=mesh, ignored_params={*objective.parameters()} - divided)
    return mesh


def whole(value: Tensor) -> Tensor:
    """A tensor that is on this process as a whole."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def alike(given: Mapping[str, Any], own: Mapping[str, Any], mesh: DeviceMesh | None) -> dict[str, Any]:
    """Tensors, divided where `own` has divided ones of their name."""
    return {
        name: distribute_tensor(value, mesh, _CUT)
        if isinstance(own.get(name), DTensor) and not isinstance(value, DTensor)
        else value
        for name, value in given.items()
    }


class ShardedAverage:
    """A moving average whose parts are divided as the model is; `ema.MovingAverage` otherwise.

    Args:
        model: Divided.
        outline: Its `skeleton`, made before it was.
        limit: The decay that the warm-up leads to.
    """

    def __init__(self, model: nn.Module, outline: nn.Module, limit: float) -> None:
        self.limit = limit
        self._outline = outline
        self._weights = {name: value.detach().clone() for name, value in model.named_parameters()}
        self._buffers = {name: value.clone() for name, value in model.named_buffers()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Takes in the model after step `step`, from 0; the first one replaces the initial weights."""
        averages = [value.to_local() for value in self._weights.values()]  # type: ignore[attr-defined]
        values = [value.to_local() for value in model.parameters()]  # type: ignore[attr-defined]
        torch._foreach_lerp_(averages, values, 1 - ema_decay(step, self.limit) if step else 1.0)
        for name, value in model.named_buffers():
            self._buffers[name].copy_(value)

    @contextlib.contextmanager
    def whole(self) -> Iterator[nn.Module]:
        """The model with averaged weights, on every process; it takes their memory as long as this is open."""
        device = next(iter(self._weights.values())).device
        module = copy.deepcopy(self._outline).to_empty(device=device)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(whole(self._weights[name]))
            for name, buffer in module.named_buffers():
                buffer.copy_(self._buffers[name])
        yield module

    def state_dict(self) -> dict[str, Any]:
        """Under the names that `MovingAverage` gives."""
        persistent = self._outline.state_dict()
        held = {**self._weights, **self._buffers}
        return {f"module.{name}": held[name] for name in persistent}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` gave. Raises `KeyError` if a name is missing."""
        own = self.state_dict()
        mesh = next(iter(self._weights.values())).device_mesh  # type: ignore[attr-defined]
        for name, value in alike({name: state[name] for name in own}, own, mesh).items():
            own[name].copy_(value)


def skeleton(model: nn.Module) -> nn.Module:
    """A model as it is, but for its values; in evaluation mode."""
    return copy.deepcopy(model).eval().requires_grad_(False).to("meta")


def split(tree: Any, path: str = "") -> tuple[Any, dict[str, DTensor]]:
    """Nested dicts and lists without their divided tensors, and these by their paths."""
    if isinstance(tree, DTensor):
        return None, {path: tree}
    if not isinstance(tree, dict):
        return tree, {}
    rest: dict[Any, Any] = {}
    parts: dict[str, DTensor] = {}
    for key, value in tree.items():
        rest[key], found = split(value, f"{path}.{key}" if path else str(key))
        parts |= found
    return rest, parts


def merged(rest: Any, parts: Mapping[str, Tensor], path: str = "") -> Any:
    """What `split` took apart."""
    if path in parts:
        return parts[path]
    if not isinstance(rest, dict):
        return rest
    return {key: merged(value, parts, f"{path}.{key}" if path else str(key)) for key, value in rest.items()}


def write_shards(parts: Mapping[str, DTensor], folder: Path) -> None:
    """Writes divided tensors, each process what it has, in `folder/shard-*.safetensors`. All processes call it."""
    save(dict(parts), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))


def read_shards(folder: Path, mesh: DeviceMesh | None) -> dict[str, Tensor]:
    """Reads what any number of processes wrote: divided over those of a mesh, or as a whole without one."""
    reader = HuggingFaceStorageReader(str(folder))
    parts: dict[str, Tensor] = {}
    for name, about in reader.read_metadata().state_dict_metadata.items():
        assert isinstance(about, TensorStorageMetadata), "safetensors hold tensors alone"
        dtype = about.properties.dtype
        parts[name] = (
            torch.empty(about.size, dtype=dtype)
            if mesh is None
            else empty(about.size, dtype=dtype, device_mesh=mesh, placements=_CUT)
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is meant
        load(parts, storage_reader=reader, no_dist=mesh is None)
    return parts
