"""`stepladder evaluate`: models on data, by the pinned protocol."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from stepladder.cli._models import pick_device
from stepladder.cli._options import MAX_SIZE, Batch, Device, Json, Seed
from stepladder.cli._output import print_json, print_table, progress_bar, say

if TYPE_CHECKING:
    from stepladder.measure.evaluation import Report

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
    int, typer.Option(min=1, max=MAX_SIZE, metavar="PIXELS", help="Side of the square that images are cut to.")
]
Limit = Annotated[int | None, typer.Option(min=1, metavar="N", help="At most this many images.", show_default=False)]


def evaluate(
    data: Data,
    models: Models,
    size: Size = 256,
    limit: Limit = None,
    seed: Seed = 0,
    batch: Batch = 8,
    device: Device = None,
    json: Json = False,
) -> None:
    """Measure quality and speed of models on data.

    All models see the same images, cut to the central square and resized. Exits with 1 if an image could not be read.
    """
    from stepladder.data import open_source
    from stepladder.measure.evaluation import evaluate as measure
    from stepladder.models import parse_model_spec

    specs = [parse_model_spec(model) for model in models]
    place = pick_device(device)
    source = open_source(data)
    with progress_bar("Evaluating") as bar:
        task = bar.add_task("", total=None)
        report = measure(
            specs,
            source,
            size=size,
            limit=limit,
            seed=seed,
            batch=batch,
            device=place,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    for metric, why in report.notes.items():
        say(f"note: {metric}: {why}")
    if json:
        print_json(report.as_dict())
    else:
        _print(report)
    raise typer.Exit(1 if report.skipped else 0)


def _print(report: "Report") -> None:
    """A row for each model; no column for a metric that none of them has."""
    columns = {
        "evaluations": [str(row.network_evaluations) for row in report.rows],
        "PSNR, dB": _numbers([row.psnr_db for row in report.rows], 2),
        "SSIM": _numbers([row.ssim for row in report.rows], 4),
        "LPIPS-VGG": _numbers([row.lpips_vgg for row in report.rows], 4),
        "rFID": _numbers([row.rfid for row in report.rows], 2),
        "FD-EffNet": _numbers([row.fd_efficientnet_lite0 for row in report.rows], 2),
        "colour shift": _numbers([row.colour_shift for row in report.rows], 4),
        "s/image": _numbers([row.seconds_per_image for row in report.rows], 4),
    }
    shown = {heading: cells for heading, cells in columns.items() if any(cell != "-" for cell in cells)}
    models = [f"{row.model}@{row.steps_per_stage}" for row in report.rows]
    print_table(
        ("model", *shown),
        list(zip(models, *shown.values(), strict=True)),
        title=f"{report.images} images of {report.data} at {report.size} x {report.size}, {report.device}",
    )


def _numbers(values: Sequence[float | None], digits: int) -> list[str]:
    return ["-" if value is None else f"{value:.{digits}f}" for value in values]
