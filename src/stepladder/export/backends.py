"""How a graph is written, and how what was written is run."""

import contextlib
import importlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from stepladder.errors import ConfigError, ExportError, MissingDependencyError, brief
from stepladder.export.graphs import Graph
from stepladder.runtime.manifest import Backend
from stepladder.runtime.sessions import open_graph, pick_engine

__all__ = ["OPSETS", "Run", "Written", "check_backend", "check_opset", "open_written", "versions", "write_graph"]

Run: TypeAlias = Callable[[Sequence[Tensor]], list[Tensor]]
"""From inputs to outputs, in the order of the graph."""

OPSETS = range(18, 24)
"""ONNX opsets that torch writes."""

_PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino"), "torch": ()}
_TRACED = (2, 2, 3)
"""Batch, rows and columns while tracing: torch takes sizes of 1 for constants."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """The files of a graph; the first is the one to open, the second holds its weights where they lie apart."""

    files: tuple[Path, ...]

    @property
    def weights(self) -> Path | None:
        """The file of the weights, where they lie apart."""
        return self.files[1] if len(self.files) > 1 else None


def check_backend(backend: Backend, *, int8: bool = False) -> None:
    """Checks that what a backend needs is installed, and what quantises to 8 bits.

    Raises:
        MissingDependencyError: If it is not.
    """
    for package in (*_PACKAGES[backend], *(("nncf",) if int8 else ())):
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                f"Export to {backend} needs the package {package}, which is not installed. It comes with the extra "
                f"'{backend}'. Run pip install 'stepladder[{backend}]'."
            ) from error


def check_opset(opset: int) -> None:
    """Checks an opset.

    Raises:
        ConfigError: If torch does not write it.
    """
    if opset not in OPSETS:
        raise ConfigError(
            f"Opset {opset} is not written. Accepted: {OPSETS.start} to {OPSETS.stop - 1}. Leave --opset out for 20."
        )


def versions(backend: Backend) -> dict[str, str]:
    """Of torch and of the packages of a backend."""
    return {name: str(importlib.import_module(name).__version__) for name in ("torch", *_PACKAGES[backend])}


def write_graph(graph: Graph, folder: Path, *, backend: Backend, opset: int) -> Written:
    """Traces a graph and writes it to a folder.

    Raises:
        ExportError: If it cannot be traced, or an operator has no counterpart.
    """
    with _quietly(), torch.no_grad():
        try:
            if backend == "torch":
                return Written(files=(_write_torch(graph, folder / f"{graph.name}.pt2"),))
            file = _write_onnx(graph, folder / f"{graph.name}.onnx", opset)
            return Written(files=(file,) if backend == "onnx" else _to_openvino(file))
        except (OSError, MemoryError):
            raise
        except Exception as error:  # tracing fails in many ways
            raise ExportError(
                f"Graph '{graph.name}' cannot be exported to {backend}: {type(error).__name__}: {brief(error)}. "
                "Accepted: what torch.export traces and the format has operators for. Try another format or --opset."
            ) from error


def open_written(graph: Graph, written: Written, backend: Backend) -> Run:
    """What was written, as a function of tensors."""
    if backend == "torch":
        program = torch.export.load(written.files[0]).module(check_guards=False)  # sides of one cell are fine
        return lambda inputs: list(program(list(inputs)))
    settings = pick_engine(backend, None, "float32", 0)
    names = [each.name for each in graph.inputs], graph.outputs
    function = open_graph(written.files[0], settings, weights=written.weights, names=names)

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        arrays = {each.name: value.numpy() for each, value in zip(graph.inputs, inputs, strict=True)}
        found = function(arrays)
        return [torch.from_numpy(found[name]) for name in graph.outputs]

    return run


def _write_torch(graph: Graph, file: Path) -> Path:
    program = torch.export.export(
        graph.module, (graph.example(*_TRACED),), dynamic_shapes=graph.dynamic_shapes, strict=False
    )
    torch.export.save(program, file)
    return file


def _write_onnx(graph: Graph, file: Path, opset: int) -> Path:
    program = torch.onnx.export(
        graph.module,
        (graph.example(*_TRACED),),
        dynamo=True,
        opset_version=opset,
        dynamic_shapes=graph.dynamic_shapes,
        input_names=[each.name for each in graph.inputs],
        output_names=list(graph.outputs),
        external_data=False,
        verbose=False,
    )
    assert program is not None
    _strip(program.model)
    program.save(str(file), external_data=False)
    return file


def _strip(model: Any) -> None:
    """Removes what tracing noted beside the graph: source files of this machine, and most of a small file."""
    parts = [model, model.graph, *model.graph.inputs, *model.graph.initializers.values()]
    for node in model.graph.all_nodes():
        parts += [node, *node.outputs]
    for part in parts:
        part.metadata_props.clear()


def _to_openvino(onnx: Path) -> tuple[Path, ...]:
    import openvino

    file = onnx.with_suffix(".xml")
    openvino.save_model(openvino.convert_model(onnx), file, compress_to_fp16=False)
    onnx.unlink()
    return file, file.with_suffix(".bin")


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Tracing warns of what is meant, and of packages that are not needed."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
