"""Graphs as functions of arrays, by onnxruntime or by OpenVINO."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from stepladder.errors import CheckpointError, ConfigError, MissingDependencyError, brief

__all__ = ["Array", "Engine", "Function", "Precision", "open_graph", "pick_engine"]

Array: TypeAlias = NDArray[Any]
Function: TypeAlias = Callable[[Mapping[str, Array]], dict[str, Array]]
"""From inputs to outputs, by their names."""
Names: TypeAlias = Sequence[str]
Engine: TypeAlias = Literal["onnxruntime", "openvino"]
Precision: TypeAlias = Literal["float32", "bfloat16", "auto"]
"""What OpenVINO computes in: "auto" is bfloat16 where the processor has it. onnxruntime computes in float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How graphs are run."""

    engine: Engine
    precision: Precision
    threads: int
    """0 for as many as the engine likes."""


def pick_engine(backend: str, engine: str | None, precision: str, threads: int) -> Settings:
    """What runs an exported model.

    Args:
        backend: What it was exported to.
        engine: The engine that is asked for; None for the one of the backend.
        precision: What to compute in.
        threads: Of the processor; 0 for as many as the engine likes.

    Raises:
        ConfigError: If these do not fit each other.
    """
    accepted: dict[str, tuple[Engine, ...]] = {"onnx": ("onnxruntime", "openvino"), "openvino": ("openvino",)}
    if backend not in accepted:
        raise ConfigError(
            f"A model exported to '{backend}' does not run without torch. Accepted: onnx and openvino. Load the .pt2 "
            "files with torch.export.load, or export the model again."
        )
    chosen = next((name for name in accepted[backend] if engine in (None, name)), None)
    if chosen is None:
        raise ConfigError(
            f"Engine '{engine}' does not run a model exported to {backend}. Accepted: {', '.join(accepted[backend])}. "
            "Name one of them, or export the model again."
        )
    if precision not in get_args(Precision) or (chosen == "onnxruntime" and precision == "bfloat16"):
        raise ConfigError(
            f"Precision '{precision}' does not fit {chosen}. Accepted: float32 and auto, and bfloat16 with openvino."
        )
    if threads < 0:
        raise ConfigError(f"Threads are {threads}. Accepted: 1 or more, or 0 to let {chosen} choose.")
    return Settings(engine=chosen, precision=precision, threads=threads)  # type: ignore[arg-type]


def open_graph(
    path: Path, settings: Settings, *, weights: Path | None = None, names: tuple[Names, Names] | None = None
) -> Function:
    """Reads a graph.

    Args:
        path: The graph.
        settings: How it is run.
        weights: Where those of an OpenVINO graph are; None for a file of the same name. ONNX graphs name theirs.
        names: Inputs and outputs that it must have; None for any.

    Raises:
        MissingDependencyError: If the engine is not installed.
        CheckpointError: If it does not take the graph, or the graph is another one.
    """
    if settings.engine == "onnxruntime":
        return _onnxruntime(path, settings, names)
    return _openvino(path, settings, weights, names)


def _onnxruntime(path: Path, settings: Settings, expected: tuple[Names, Names] | None) -> Function:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise _missing("onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base
        raise _refused(path, "onnxruntime", error) from error
    names = [output.name for output in session.get_outputs()]
    if expected:
        _check_names(path, expected, [[each.name] for each in session.get_inputs()], [[name] for name in names])

    def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
        try:
            return dict(zip(names, session.run(names, dict(inputs)), strict=True))
        except Exception as error:
            raise _failed(path, "onnxruntime", error) from error

    return run


def _openvino(path: Path, settings: Settings, weights: Path | None, expected: tuple[Names, Names] | None) -> Function:
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise _missing("openvino") from error
    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if settings.precision != "auto":
        config["INFERENCE_PRECISION_HINT"] = {"float32": "f32", "bfloat16": "bf16"}[settings.precision]
    if settings.threads:
        config["INFERENCE_NUM_THREADS"] = settings.threads
    try:
        core = openvino.Core()
        model = core.read_model(path, weights) if weights and path.suffix == ".xml" else core.read_model(path)
        compiled = core.compile_model(model, "CPU", config)
    except RuntimeError as error:
        raise _refused(path, "OpenVINO", error) from error
    if expected:
        ports = ([sorted(port.get_names()) for port in side] for side in (compiled.inputs, compiled.outputs))
        _check_names(path, expected, *ports)
    names = [output.get_any_name() for output in compiled.outputs]

    def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
        try:
            found = compiled(dict(inputs))
        except RuntimeError as error:
            raise _failed(path, "OpenVINO", error) from error
        return {name: np.array(found[name]) for name in names}  # its own memory is reused

    return run


def _check_names(path: Path, expected: tuple[Names, Names], inputs: list[list[str]], outputs: list[list[str]]) -> None:
    """Each input and output of a graph may have several names."""
    for what, wanted, found in zip(("inputs", "outputs"), expected, (inputs, outputs), strict=True):
        if len(wanted) != len(found) or not set(wanted) <= set(chain.from_iterable(found)):
            there = ", ".join(map("/".join, found))
            raise CheckpointError(
                f"{path} is another graph: its {what} are {there}. Accepted: {', '.join(wanted)}. Export it again."
            )


def _missing(package: str) -> MissingDependencyError:
    return MissingDependencyError(
        f"This model needs the package {package}, which is not installed. Exported graphs run by it. "
        f"Run pip install {package}."
    )


def _refused(path: Path, engine: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{engine} does not take {path}: {brief(error)}. Export the model again, or install the versions in its "
        "manifest."
    )


def _failed(path: Path, engine: str, error: Exception) -> Exception:
    """Memory that is not enough, or a graph that does not run."""
    if any(word in str(error).lower() for word in ("alloc", "memory")):
        return MemoryError(
            f"Not enough memory ({brief(error)}). Use smaller images, a smaller batch or a smaller tile."
        )
    return CheckpointError(
        f"{engine} fails in {path}: {brief(error)}. The graph may be that of another model. Export the model again, "
        "or install the versions in its manifest."
    )
