"""Plots of a benchmark.

one size         a bar for each contender, as long as its decode takes, in parts for the scales that it goes through
several sizes    a line for each contender, time against side, both axes logarithmic
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from PIL import Image

from stepladder.errors import MissingDependencyError
from stepladder.measure.benchmarking import BenchmarkReport, BenchmarkRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["benchmark_plotter"]

_COLOURS = ("#1b4f8a", "#e08a1e", "#3a9d7c", "#b5478f", "#7fb8e6", "#8a6d1b", "#666666", "#c0392b")
_MARKERS = "osD^vPX*"
_DPI = 160
_LONGEST = 32
"""Characters of a label."""


def benchmark_plotter() -> Callable[[BenchmarkReport], Image.Image]:
    """Draws the plot of a report; asked for before measuring, it fails before measuring.

    Raises:
        MissingDependencyError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            f"A plot needs the package matplotlib, which cannot be imported ({error}). Run pip install "
            "'stepladder[plot]', or leave --plot out."
        ) from error
    return partial(_draw, Figure)


def _draw(kind: type[Figure], report: BenchmarkReport) -> Image.Image:
    several = len({row.size for row in report.rows}) > 1
    height = 4.8 if several else 1.7 + 0.42 * len(report.rows)
    figure = kind(figsize=(7.2, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(color="#e4e4e4", axis="both" if several else "x")
    (_lines if several else _bars)(axes, report)
    figure.suptitle(report.conditions, fontsize=8, x=0.01, ha="left")
    figure.legend(frameon=False, fontsize=8, ncols=3, loc="outside lower left")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI)
    return Image.open(file).convert("RGB")


def _bars(axes: Axes, report: BenchmarkReport) -> None:
    """Stages of all contenders at the same scale have the same colour."""
    labels = [_label(row) for row in report.rows]
    places = range(len(labels))
    starts = [0.0] * len(labels)
    for exponent in reversed(range(max(row.stages for row in report.rows))):  # side / 2^exponent, coarse first
        times = [row.seconds_per_stage[-1 - exponent] if exponent < row.stages else 0.0 for row in report.rows]
        scale = f"1/{2**exponent} of the side" if exponent else "full side"
        axes.barh(places, times, left=starts, color=_COLOURS[exponent % len(_COLOURS)], label=scale, height=0.62)
        starts = [start + time for start, time in zip(starts, times, strict=True)]
    for place, end, row in zip(places, starts, report.rows, strict=True):
        text = f"{row.seconds_per_image:.3g} s"
        axes.annotate(text, (end, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(places, labels)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * max(starts))
    axes.set_xlabel(f"seconds to decode one image of {report.rows[0].size} x {report.rows[0].size}")
    axes.tick_params(axis="y", length=0)


def _lines(axes: Axes, report: BenchmarkReport) -> None:
    lines: dict[str, list[BenchmarkRow]] = {}
    for row in report.rows:
        lines.setdefault(_label(row), []).append(row)
    for index, (label, rows) in enumerate(lines.items()):
        rows = sorted(rows, key=lambda row: row.size)
        look: dict[str, Any] = {"color": _COLOURS[index % len(_COLOURS)], "marker": _MARKERS[index % len(_MARKERS)]}
        axes.plot([row.size for row in rows], [row.seconds_per_image for row in rows], label=label, **look)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    sizes = sorted({row.size for row in report.rows})
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("side of the image, pixels")
    axes.set_ylabel("seconds to decode one image")


def _label(row: BenchmarkRow) -> str:
    """Names a contender; of a long path, the end."""
    return row.label if len(row.label) <= _LONGEST else f"...{row.label[3 - _LONGEST :]}"
