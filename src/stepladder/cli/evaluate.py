"""`stepladder evaluate`: models on data, by the pinned protocol."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stepladder.bounds import MAX_SIDE
from stepladder.cli._files import check_outputs, make_folder
from stepladder.cli._models import open_encoders, pick_device, pick_sampler
from stepladder.cli._options import (
    Batch,
    Compile,
    Device,
    Dtype,
    Encoder,
    Force,
    Json,
    Noise,
    NoiseFrom,
    Precision,
    Sampler,
    Seed,
    Shift,
    Steps,
    Texture,
)
from stepladder.cli._output import counted, print_json, print_table, progress_bar, say, shown

if TYPE_CHECKING:
    from torch import Tensor

    from stepladder.measure.metrics import Metric
    from stepladder.measure.reports import Report, Row

__all__ = ["evaluate"]

Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="A folder of images, .tar shards or Parquet files (quote a pattern), or a hub data set.",
        show_default=False,
    ),
]
Models = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL@N", help="Embedded names, folders or hub ids; @N sets N steps per stage.", show_default=False
    ),
]
Size = Annotated[
    int, typer.Option(min=1, max=MAX_SIDE, metavar="PIXELS", help="Side of the square that images are cut to.")
]
Pictures = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Also write 00000.png, 00001.png ... in this folder: the original, then what each model makes of it.",
        show_default=False,
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, metavar="N", help="At most this many images.", show_default=False)]
Crops = Annotated[
    int,
    typer.Option(
        min=1,
        max=1000,
        metavar="N",
        help="Squares cut from each image: the central one, then others anywhere, the same in every evaluation.",
    ),
]
Bootstrap = Annotated[
    int,
    typer.Option(
        min=0,
        max=100_000,
        metavar="N",
        help="Draw the images anew N times for 95 % intervals of Frechet distances, and of what they are above that of "
        "the first model; 0 for none, 100 is enough.",
    ),
]


def evaluate(
    data: Data,
    models: Models,
    size: Size = 256,
    limit: Limit = None,
    crops: Crops = 1,
    bootstrap: Bootstrap = 0,
    seed: Seed = 0,
    batch: Batch = 8,
    steps: Steps = None,
    sampler: Sampler = "euler",
    texture: Texture = 1.0,
    shift: Shift = None,
    noise: Noise = NoiseFrom.drawn,
    device: Device = "auto",
    dtype: Dtype = Precision.float32,
    compile: Compile = False,
    encoder: Encoder = None,
    pictures: Pictures = None,
    json: Json = False,
    force: Force = False,
) -> None:
    """Measure quality and speed of models on data.

    All models see the same images, cut to the central square and resized. Exits with 1 if an image could not be read.
    Under torchrun, all processes share the work, and the first one reports.
    """
    from stepladder.data import open_source
    from stepladder.devices import find_dtype
    from stepladder.measure.evaluation import evaluate as measure
    from stepladder.models import parse_model_spec
    from stepladder.processes import together
    from stepladder.tokenizer import Tokenizer

    specs = [replace(spec, steps=spec.steps or steps) for spec in map(parse_model_spec, models)]
    place, source = pick_device(device, compile=compile), open_source(data)
    loaded = [(spec.name, Tokenizer.from_pretrained(spec.name), spec.steps) for spec in specs]
    open_encoders([(name, tokenizer) for name, tokenizer, _ in loaded], encoder)
    if pictures:
        _make_room(pictures, crops * (len(source) if limit is None else min(limit, len(source))), force=force)
    with together() as processes, progress_bar("Evaluating", silent=not processes.main) as bar:
        task = bar.add_task("", total=None)
        report = measure(
            loaded,
            source,
            size=size,
            limit=limit,
            crops=crops,
            bootstrap=bootstrap,
            seed=seed,
            batch=batch,
            device=place,
            dtype=find_dtype(dtype, place),
            sampler=pick_sampler(sampler, texture, shift, noise),
            noise=noise.value,
            compile=compile,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
            on_images=partial(_save, pictures, force) if pictures else None,
        )
    if processes.main:
        _talk(report, pictures, [str(spec) for spec in specs])
        print_json(report.as_dict()) if json else _print(report)
        raise typer.Exit(1 if report.skipped else 0)


def _talk(report: "Report", pictures: Path | None, models: list[str]) -> None:
    """Says where pictures are, and which metrics are missing."""
    if pictures:
        names = ", ".join(["original", *models])
        say(f"{counted(report.images, 'picture')} in {shown(pictures)}, from left to right: {names}.")
    for metric, why in report.notes.items():
        say(f"note: {metric}: {why}")


def _make_room(folder: Path, count: int, *, force: bool) -> None:
    check_outputs([], [_picture(folder, index) for index in range(count)], force=force)
    make_folder(folder)


def _save(folder: Path, force: bool, first: int, originals: "Tensor", models: "list[Tensor]") -> None:
    """A row for each image of a batch: the original, then what each model made of it."""
    from stepladder.images import save_png, side_by_side, to_pil

    for place, row in enumerate(zip(originals, *models, strict=True), start=first):
        save_png(side_by_side([to_pil(image) for image in row]), _picture(folder, place), force=force)


def _picture(folder: Path, place: int) -> Path:
    return folder / f"{place:05}.png"


def _print(report: "Report") -> None:
    """A row for each model; no column for a metric that none of them has."""
    from stepladder.measure.evaluation import METRICS

    columns = {}
    for metric in METRICS:
        columns[metric.heading] = [_cell(row, metric) for row in report.rows]
        columns[f"{metric.heading} over the first"] = [_over_first(row, metric) for row in report.rows]
    columns = {
        "evaluations": [str(row.network_evaluations) for row in report.rows],
        **{heading: cells for heading, cells in columns.items() if any(cell != "-" for cell in cells)},
        "s/image": [f"{row.seconds_per_image:.4f}" for row in report.rows],
    }
    models = [f"{row.model}@{row.steps_per_stage}" for row in report.rows]
    cut = f", {report.crops} crops of each" if report.crops > 1 else ""
    samplers = dict.fromkeys(f", {row.sampler}" for row in report.rows if str(row.sampler))
    print_table(
        ("model", *columns),
        list(zip(models, *columns.values(), strict=True)),
        title=f"{report.images} images of {report.data}{cut} at {report.size} x {report.size}, {report.device}"
        + "".join(samplers),
        spare=("evaluations", "colour shift", "s/image", "rFID", "LPIPS (VGG)", "SSIM", "MS-SSIM"),
    )


def _cell(row: "Row", metric: "Metric") -> str:
    """A value, with half the width of its interval where there is one."""
    value = row.metrics[metric.key]
    if value is None:
        return "-"
    interval = row.intervals.get(metric.key)
    spread = f" ± {interval[1] - value:.{metric.digits}f}" if interval else ""
    return f"{value:.{metric.digits}f}{spread}"


def _over_first(row: "Row", metric: "Metric") -> str:
    """What a metric is above that of the first row, with half the width of the interval of this difference."""
    interval = row.differences.get(metric.key)
    if interval is None:
        return "-"
    low, high = interval
    return f"{(low + high) / 2:+.{metric.digits}f} ± {(high - low) / 2:.{metric.digits}f}"
