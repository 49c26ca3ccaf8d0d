"""`stepladder benchmark`: how fast decoders are, each alone."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stepladder.bounds import MAX_SIDE
from stepladder.cli._models import load_model, pick_device
from stepladder.cli._options import (
    DEFAULT_MODEL,
    Batch,
    Compile,
    Device,
    Dtype,
    Force,
    Json,
    Noise,
    NoiseFrom,
    Precision,
    Seed,
)
from stepladder.cli._output import print_json, print_table, progress_bar, say, shown
from stepladder.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from stepladder.measure.benchmarking import BenchmarkReport, BenchmarkRow

__all__ = ["benchmark"]

_HEADINGS = (
    "model",
    "side",
    "evaluations",
    "GFLOP",
    "s/image",
    "min",
    "max",
    "s in each stage",
    "MiB",
    "of peak",
    "faster",
)
_SPARE = ("min", "max", "s in each stage", "of peak", "evaluations", "GFLOP", "MiB")
"""What a narrow terminal does without, the first first."""


Models = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[MODEL@N]...",
        help=f"Embedded names, folders or hub ids; @N sets N steps per stage; {DEFAULT_MODEL} by default.",
        show_default=False,
    ),
]
Sizes = Annotated[
    list[int] | None,
    typer.Option(
        "--size",
        min=1,
        max=MAX_SIDE,
        metavar="PIXELS",
        help="Side of the images, 256 by default; may be repeated.",
        show_default=False,
    ),
]
Against = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME", help="Also a decoder of diffusers: kl, tiny, or all; may be repeated.", show_default=False
    ),
]
Repeats = Annotated[int, typer.Option(min=1, max=10**6, metavar="N", help="Timed decodes of each model at each size.")]
Plot = Annotated[
    Path | None, typer.Option(metavar="FILE.png", help="Also draw the times in this file.", show_default=False)
]


def benchmark(
    models: Models = None,
    size: Sizes = None,
    against: Against = None,
    batch: Batch = 1,
    repeats: Repeats = 5,
    dtype: Dtype = Precision.float32,
    compile: Compile = False,
    device: Device = "auto",
    seed: Seed = 0,
    noise: Noise = NoiseFrom.drawn,
    plot: Plot = None,
    json: Json = False,
    force: Force = False,
) -> None:
    """Measure how fast decoders are.

    Decoding alone, on random latents; the models take turns. Ratios are to the first row of the same size.
    """
    if plot:
        _check_plot(plot, force=force)

    from stepladder.devices import find_dtype
    from stepladder.images import save_png
    from stepladder.integrations.diffusers.contenders import find_decoders
    from stepladder.integrations.matplotlib import benchmark_plotter
    from stepladder.measure.benchmarking import benchmark as measure
    from stepladder.measure.contenders import tokenizer_contender

    place = pick_device(device, compile=compile)
    draw = benchmark_plotter() if plot else None
    foreign = find_decoders(against or [])
    contenders = []
    for text in models or [DEFAULT_MODEL]:
        tokenizer, spec = load_model(text, device)
        contenders.append(tokenizer_contender(spec.name, tokenizer, spec.steps))
    with progress_bar("Measuring") as bar:
        task = bar.add_task("", total=None)
        report = measure(
            [*contenders, *foreign],
            sizes=size or [256],
            batch=batch,
            repeats=repeats,
            dtype=find_dtype(dtype, place),
            compile=compile,
            device=place,
            seed=seed,
            noise=noise.value,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if json:
        print_json(report.as_dict())
    else:
        _print(report)
    if plot and draw:
        save_png(draw(report), plot, force=force)
        say(f"Plot in {shown(plot)}.")


def _check_plot(plot: Path, *, force: bool) -> None:
    if plot.suffix.lower() != ".png":
        raise ConfigError(f"Plot {shown(plot)} does not end in .png. Only PNG is written. Name another --plot.")
    if os.path.lexists(plot) and not force:
        raise OutputError(f"{shown(plot)} exists already. Pass --force to replace it, or name another --plot.")


def _print(report: "BenchmarkReport") -> None:
    print_table(
        _HEADINGS,
        [tuple(_cells(row)) for row in report.rows],
        title=f"{report.conditions}; peak {report.peak_gflops:.4g} GFLOP/s",
        spare=_SPARE,
    )


def _cells(row: "BenchmarkRow") -> Iterator[str]:
    yield row.label
    yield str(row.size)
    yield str(row.network_evaluations)
    yield f"{row.gflop_per_image:.3g}"
    yield from (f"{seconds:.3g}" for seconds in (row.seconds_per_image, row.seconds_min, row.seconds_max))
    yield " + ".join(f"{seconds:.2g}" for seconds in row.seconds_per_stage)
    yield "-" if row.peak_memory_mib is None else f"{row.peak_memory_mib:.0f}"
    yield f"{row.share_of_peak:.0%}"
    yield f"{row.faster_than_first:.2f} x"
