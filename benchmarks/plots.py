"""Draws the plots of the documentation from the recorded measurements.

    docs/images/quality.png        results/photos-256.json     quality against the time of a decode
    docs/images/sides.png          results/sides.json          time against the side of the image
    docs/images/ladder-cost.png    results/ladder-cost.json    what each scale adds, against what each step adds

    python benchmarks/plots.py            draws the plots whose records have changed; --force draws all that have one
    python benchmarks/plots.py --check    changes nothing; exit 1 and one line where a plot is out of date

A plot carries the digest of its record as PNG metadata, and is out of date where that is not the record's: pixels
differ between versions of matplotlib. A measurement is recorded by `benchmarks/record.py`.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, groupby, pairwise
from pathlib import Path
from typing import Any, Literal

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.text import Annotation
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import Bbox, BboxBase
from PIL import Image

from stepladder.files import write_atomically

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, Python looks beside it only

from benchmarks.tables import RESULTS, ROOT, Row, load, spec

IMAGES = ROOT / "docs" / "images"
DIGEST = "Record"
"""The key of the metadata that holds the digest of the record."""
LADDER, FULL, GREY = "#1b4f8a", "#e08a1e", "#666666"
"""Colours of decodes on a ladder and at full resolution, one dark and one light so that they differ in grey too."""
STYLE = {
    "font.size": 9,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlesize": 9,
    "legend.frameon": False,
    "savefig.dpi": 160,
}
OFFSETS: list["Offset"] = [
    (6, 0, "left", "center"),
    (-6, 0, "right", "center"),
    (0, 6, "center", "bottom"),
    (0, -6, "center", "top"),
    (5, 5, "left", "bottom"),
    (-5, 5, "right", "bottom"),
    (5, -5, "left", "top"),
    (-5, -5, "right", "top"),
]
"""Where a label may stand beside its point: points to the right and up, and what of the text is there."""

DOTTED = (0, (1, 3))
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")

Record = Mapping[str, Any]
Offset = tuple[float, float, Literal["left", "center", "right"], Literal["bottom", "center", "top"]]


@dataclass(frozen=True, slots=True)
class Plot:
    """A picture of one record."""

    name: str
    """It is docs/images/NAME.png."""
    record: str
    """What it shows, benchmarks/results/RECORD.json."""
    draw: Callable[[Record], Figure]

    @property
    def path(self) -> Path:
        """The picture."""
        return IMAGES / f"{self.name}.png"

    @property
    def source(self) -> Path:
        """The record."""
        return RESULTS / f"{self.record}.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(description="Draw the plots of docs/images from benchmarks/results.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a plot is out of date")
    parser.add_argument("--force", action="store_true", help="draw also what is up to date")
    options = parser.parse_args(arguments)
    failed = []
    try:
        for plot in PLOTS:
            if not plot.source.is_file():
                if plot.path.exists():
                    failed.append(f"{_name(plot.path)} has no {_name(plot.source)}. Record it, or delete the plot.")
                continue
            record = load(plot.source)
            if drawn_from(plot.path) == digest(record) and not options.force:
                continue
            if options.check:
                failed.append(f"{_name(plot.path)} is out of date. Run: make tables")
            else:
                save(plot, record)
                print(f"{_name(plot.path)}: drawn")
    except (OSError, ValueError) as error:
        failed.append(str(error))
    for message in failed:
        print(f"error: {message}", file=sys.stderr)
    return 1 if failed else 0


def digest(record: Record) -> str:
    """Tells records apart by their values, not by how a file spells them."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def drawn_from(path: Path) -> str | None:
    """The digest of the record that a plot was drawn from; None if there is no plot, or it does not say."""
    if not path.is_file():
        return None
    with Image.open(path) as image:
        return image.info.get(DIGEST)


def save(plot: Plot, record: Record) -> None:
    """Draws a plot; the same record gives the same bytes with the same matplotlib."""
    with matplotlib.style.context(["default", STYLE]):
        figure = plot.draw(record)
        metadata = {DIGEST: digest(record), "Software": None}
        write_atomically(plot.path, lambda path: figure.savefig(path, metadata=metadata), force=True)


# ----------------------------------------------------------------------------------------------------------- the plots


def quality(record: Record) -> Figure:
    """PSNR and FD against the time of a decode; lines join the same model at several numbers of steps."""
    report = record["report"]
    figure = _figure(
        "Quality of reconstructions against the time of a decode",
        f"{report['images']} images of {report['data']} at {report['size']} x {report['size']}; {_place(record)}",
    )
    panels = {
        "psnr_db": "PSNR, dB (higher is better)",
        "fd_efficientnet_lite2": "FD, EfficientNet-Lite2 (lower is better)",
    }
    labels = {}
    for place, (metric, heading) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), place + 1)
        rows = [row for row in report["rows"] if row.get(metric) is not None]
        for _, group in groupby(sorted(rows, key=_model_then_steps), key=lambda row: row["model"]):
            points = list(group)
            axes.plot(
                [row["seconds_per_image"] for row in points],
                [row[metric] for row in points],
                **_look(points[0]),
                linewidth=0.8,
            )
        axes.set(xscale="log", xlabel="seconds per image (log scale)", ylabel=heading)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(PLAIN)
        axes.margins(0.15)
        labels[axes] = [(row["seconds_per_image"], row[metric], spec(row)) for row in rows]
    _legend_of_kinds(figure, full="full resolution (K = 1)", ladder="ladder (K > 1)")
    figure.draw_without_rendering()
    for axes, points in labels.items():
        _label(axes, points)
    return figure


def sides(record: Record) -> Figure:
    """Time against the side of the image, both on log scales; what grows as the pixels do has slope 2."""
    rows: Sequence[Row] = record["report"]["rows"]
    figure = _figure("Time of a decode against the side of the image", _place(record), width=6.8, room=False)
    axes = figure.add_subplot()
    slowest_first = sorted({spec(row): row for row in sorted(rows, key=_side)}.values(), key=_seconds, reverse=True)
    for row, marker, dashes in zip(slowest_first, cycle("osD^vPX"), cycle(["-", "--", "-.", ":"]), strict=False):
        points = sorted((point for point in rows if spec(point) == spec(row)), key=_side)
        look = {**_look(row), "marker": marker, "linestyle": dashes, "linewidth": 1.2}
        label = f"{spec(row)} (K = {row['stages']})"
        axes.plot([_side(point) for point in points], [_seconds(point) for point in points], label=label, **look)
    every = sorted({_side(row) for row in rows})
    start = min(_seconds(row) for row in rows if _side(row) == every[0]) / 2
    guide = [start * (side / every[0]) ** 2 for side in every]
    axes.plot(every, guide, label="growth of the pixels", color=GREY, linewidth=0.8, linestyle=DOTTED)
    axes.set(xscale="log", xlabel="side of the image, pixels (log scale)", ylabel="seconds per image (log scale)")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(PLAIN)
    axes.xaxis.set_major_locator(FixedLocator(every))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(PLAIN)
    figure.legend(loc="outside right center", title="model@steps in each stage", alignment="left")
    return figure


def ladder_cost(record: Record) -> Figure:
    """Operations and time of one step on each of K scales, and of N steps at full resolution."""
    report = record["report"]
    rows: Sequence[Row] = report["rows"]
    climbs = sorted((row for row in rows if row["steps_per_stage"] == 1), key=_evaluations)
    flat = sorted((row for row in rows if row["stages"] == 1), key=_evaluations)
    figure = _figure(
        "Cost of a decode: one step on each of K scales, and N steps at full resolution",
        f"network of photo, side {_side(rows[0])}, median of {report['repeats']} decodes; {_place(record)}",
    )
    panels = {"gflop_per_image": "GFLOP per image", "seconds_per_image": "seconds per image"}
    for place, (key, heading) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), place + 1)
        for points in (flat, climbs):
            axes.plot([_evaluations(row) for row in points], [row[key] for row in points], **_look(points[-1]))
        for row in climbs:
            _note(axes, f"K = {row['stages']}", (_evaluations(row), row[key]), OFFSETS[3])
        for row in flat[1:]:
            _note(axes, f"N = {row['steps_per_stage']}", (_evaluations(row), row[key]), OFFSETS[1])
        last = _evaluations(flat[-1])
        third = (flat[-1][key] - flat[0][key]) / (last - 1) / 3
        axes.axhline(flat[0][key] + third, color=GREY, linewidth=0.8, linestyle=DOTTED)
        _note(axes, "limit: 4/3 of a step", (last, flat[0][key] + third), (0, 3, "right", "bottom"), color=GREY)
        axes.set(xlabel="network evaluations, K or N", ylabel=heading)
        axes.set(xlim=(0.3, last + 0.5), ylim=(0, 1.08 * flat[-1][key]))
        axes.xaxis.set_major_locator(FixedLocator(range(1, last + 1)))
    _legend_of_kinds(
        figure, full="N steps at full resolution", ladder="one step on each of K scales, the coarsest 1 / 2^(K-1)"
    )
    return figure


PLOTS = (
    Plot("quality", "photos-256", quality),
    Plot("sides", "sides", sides),
    Plot("ladder-cost", "ladder-cost", ladder_cost),
)


# ----------------------------------------------------------------------------------------------------------- in common


def _figure(title: str, caption: str, *, width: float = 9.0, room: bool = True) -> Figure:
    """An empty figure that says above what was measured, and below on what; `room` for a legend under the title."""
    figure = Figure(figsize=(width, 4.2), layout=ConstrainedLayoutEngine(wspace=0.06))
    FigureCanvasAgg(figure)
    figure.suptitle(title + "\n" * room, fontsize=11, fontweight="bold")
    figure.supxlabel(caption, fontsize=7.5, color=GREY)
    return figure


def _place(record: Record) -> str:
    """Where a record was measured."""
    report = record["report"]
    batch = report["batch"] if "batch" in report else report["rows"][0]["batch"]
    return f"{record['hardware']}, {report['device']}, {report['threads']} threads, batch {batch}"


def _look(row: Row) -> dict[str, Any]:
    """Ladders and full resolution differ in colour and in marker."""
    ladder = row["stages"] > 1
    return {"color": LADDER if ladder else FULL, "marker": "o" if ladder else "s", "markersize": 5}


def _legend_of_kinds(figure: Figure, *, full: str, ladder: str) -> None:
    kinds = [Line2D([], [], label=full, **_look({"stages": 1})), Line2D([], [], label=ladder, **_look({"stages": 2}))]
    figure.legend(handles=kinds, loc="upper center", bbox_to_anchor=(0.5, 0.955), ncols=2)


def _label(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Names points; each name takes the place where it meets least: borders, points and other names, then lines."""
    solid = [_square(spot, 5) for spot in axes.transData.transform([(x, y) for x, y, _ in points])]
    thin = []
    for line in axes.lines:
        for start, end in pairwise(axes.transData.transform(line.get_xydata())):
            thin += [_square(start + (end - start) * part / 50, 1) for part in range(51)]
    for x, y, name in points:
        notes = [_note(axes, name, (x, y), offset, size=7.5) for offset in OFFSETS]
        boxes = [note.get_window_extent() for note in notes]
        costs = [
            100 * (_outside(box, axes.bbox) + box.count_overlaps(solid)) + box.count_overlaps(thin) for box in boxes
        ]
        best = costs.index(min(costs))
        solid.append(boxes[best].padded(3))
        for note in notes[:best] + notes[best + 1 :]:
            note.remove()


def _square(centre: Sequence[float], half: float) -> Bbox:
    return Bbox.from_extents(centre[0] - half, centre[1] - half, centre[0] + half, centre[1] + half)


def _outside(box: BboxBase, frame: BboxBase) -> bool:
    """Whether a part of a box lies outside a frame."""
    return box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1


def _note(
    axes: Axes, text: str, point: tuple[float, float], offset: Offset, *, size: float = 8, color: str = "black"
) -> Annotation:
    """Text beside a point."""
    right, up, horizontal, vertical = offset
    note = axes.annotate(
        text, point, (right, up), textcoords="offset points", ha=horizontal, va=vertical, fontsize=size, color=color
    )
    note.set_in_layout(False)
    return note


def _model_then_steps(row: Row) -> tuple[str, int]:
    return str(row["model"]), int(row["steps_per_stage"])


def _side(row: Row) -> int:
    return int(row["size"])


def _seconds(row: Row) -> float:
    return float(row["seconds_per_image"])


def _evaluations(row: Row) -> int:
    return int(row["network_evaluations"])


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


if __name__ == "__main__":
    sys.exit(main())
