"""What was written against what was traced: the same inputs, at sizes that tracing did not see."""

import torch
from torch import Tensor

from stepladder.errors import ExportError
from stepladder.export.backends import Run
from stepladder.export.graphs import Graph

__all__ = ["SIZES", "TOLERANCE", "check_graph"]

SIZES = ((1, 1, 1), (3, 3, 2))
"""Batch, rows and columns of the inputs."""
TOLERANCE = 2e-3
"""Largest accepted difference of a value, in units of the largest value or of 1: 0.05 dB are less at any usual PSNR."""


def check_graph(graph: Graph, run: Run) -> float:
    """Compares what was written with torch, and returns the largest difference.

    Raises:
        ExportError: If a shape differs, or a value by more than `TOLERANCE`.
    """
    largest = 0.0
    for sizes in SIZES:
        inputs = graph.example(*sizes)
        with torch.inference_mode():
            expected = graph.module([value.clone() for value in inputs])
        for name, ours, theirs in zip(graph.outputs, expected, run(inputs), strict=True):
            largest = max(largest, _difference(graph.name, name, ours, theirs))
    return largest


def _difference(graph: str, output: str, expected: Tensor, found: Tensor) -> float:
    if expected.shape != found.shape:
        raise ExportError(
            f"Output '{output}' of the exported graph '{graph}' has shape {tuple(found.shape)}; torch gives "
            f"{tuple(expected.shape)}. Nothing was kept. Try another format or --opset."
        )
    if not expected.is_floating_point():
        return _check(graph, output, (expected != found).float().mean().item())
    scale = max(1.0, expected.abs().max().item())
    return _check(graph, output, (expected - found).abs().max().item() / scale)


def _check(graph: str, output: str, difference: float) -> float:
    if not difference <= TOLERANCE:
        raise ExportError(
            f"Output '{output}' of the exported graph '{graph}' differs from torch by {difference:.2g}. Accepted: up "
            f"to {TOLERANCE:g}. Nothing was kept. Try another format or --opset."
        )
    return difference
