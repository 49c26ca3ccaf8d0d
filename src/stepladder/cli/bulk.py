"""`stepladder bulk`: a whole data set to latents and back, by many workers, with resume."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from stepladder.bounds import MAX_SIDE
from stepladder.cli._models import check_noise, pick_device
from stepladder.cli._options import (
    DEFAULT_MODEL,
    Compile,
    Device,
    Encoder,
    Guidance,
    Json,
    Noise,
    NoiseFrom,
    Precision,
    Steps,
)
from stepladder.cli._options import Dtype as ComputeDtype
from stepladder.cli._output import counted, print_json, print_table, progress_bar, rate, say, shown
from stepladder.errors import ConfigError

if TYPE_CHECKING:
    from stepladder.bulk.run import Engine, Progress, Summary

__all__ = ["app"]

app = typer.Typer(
    name="bulk",
    help="Encode or decode a whole data set, by many workers, with resume.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_EVERY = 30.0
"""Seconds between two lines of progress where there is no terminal."""

Input = Annotated[
    str,
    typer.Argument(
        metavar="INPUT",
        help="A folder of images, .tar shards or Parquet files (quote a pattern), a hub data set, or a remote URL such "
        "as s3://bucket/shards/*.tar.",
        show_default=False,
    ),
]
Output = Annotated[
    str,
    typer.Argument(
        metavar="OUTPUT",
        help="Folder or URL for the results. With the same options, a run goes on where the last one ended.",
        show_default=False,
    ),
]
Model = Annotated[str, typer.Option("--model", metavar="MODEL", help="An embedded name, a folder or a hub id.")]
Latents = Annotated[
    str,
    typer.Argument(
        metavar="INPUT", help="What `bulk encode` wrote in the layout parquet, or Parquet files.", show_default=False
    ),
]
Decoder = Annotated[
    str,
    typer.Option(
        "--model", metavar="MODEL@N", help="An embedded name, a folder or a hub id; @N sets N steps per stage."
    ),
]
Format = Annotated[
    str, typer.Option("--format", metavar="FORMAT", help="png, webp, jpeg; npz for one array of all images.")
]
Originals = Annotated[
    str | None,
    typer.Option(
        metavar="DATA", help="The data set that was encoded, to score the images against it.", show_default=False
    ),
]
BulkSeed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        min=0,
        max=2**62,
        metavar="S",
        help="With its id, the seed of the noise of each image; 0 without it.",
        show_default=False,
    ),
]
LayoutOption = Annotated[
    str,
    typer.Option(
        "--layout",
        metavar="LAYOUT",
        help="Files of the output: parquet, lightningdit, edm2, npy, webdataset, mds; jsonl for quantised models.",
    ),
]
Size = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=MAX_SIDE,
        metavar="N",
        help="Cut each image to its central square and resize it to N x N.",
        show_default=False,
    ),
]
KeepSize = Annotated[
    bool, typer.Option("--keep-size", help="Leave images as they are; those of one size are encoded together.")
]
Flip = Annotated[bool, typer.Option("--flip", help="Also store the latents of the mirrored images.")]
Moments = Annotated[
    bool, typer.Option("--moments", help="Store mean and standard deviation of the posterior, along the channels.")
]
Dtype = Annotated[str, typer.Option(metavar="TYPE", help="Of stored latents: float32, float16, bfloat16.")]
Label = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN",
        help="The column of labels; without it, 'label' or 'cls' where there is one.",
        show_default=False,
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, max=2**16, metavar="B", help="Images that the network takes at once.")]
Shard = Annotated[int, typer.Option(min=1, max=10**7, metavar="N", help="Images in a shard of the output, at most.")]
Threads = Annotated[int, typer.Option(min=1, max=1024, metavar="N", help="Threads of torch in each worker.")]
Workers = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=100_000,
        metavar="N",
        help="Workers; 0 for this process alone. Without it, one for each processor or GPU.",
        show_default=False,
    ),
]
EngineOption = Annotated[
    str, typer.Option("--engine", metavar="ENGINE", help="pool: processes on this machine; ray: actors of Ray.")
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Of a Ray cluster to join, for example auto; without it, Ray starts on this machine.",
        show_default=False,
    ),
]


@app.command()
def encode(
    data: Input,
    output: Output,
    model: Model = DEFAULT_MODEL,
    encoder: Encoder = None,
    layout: LayoutOption = "parquet",
    size: Size = None,
    keep_size: KeepSize = False,
    flip: Flip = False,
    moments: Moments = False,
    dtype: Dtype = "float32",
    label: Label = None,
    batch: BatchSize = 16,
    shard: Shard = 1024,
    threads: Threads = 1,
    workers: Workers = None,
    engine: EngineOption = "pool",
    address: Address = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Encode a data set.

    A run that was stopped, killed too, goes on when the same command is given again: nothing is lost, nothing is twice,
    and the latents have the same bits with another number of workers. Images that cannot be read are listed in
    OUTPUT/errors.jsonl. Exits with 1 if there are any, or if a shard failed.
    """
    if keep_size == (size is not None):
        raise ConfigError("Images need one of --size and --keep-size, and not both. Pass for example --size 256.")
    place = pick_device(device)
    with_engine = _engine(engine, workers, address)

    from stepladder.bulk.jobs import encode as run
    from stepladder.bulk.options import EncodeOptions

    options = EncodeOptions(
        layout=layout,  # type: ignore[arg-type]  # it is checked there
        size=size,
        flip=flip,
        moments=moments,
        dtype=dtype,
        label=label,
        batch=batch,
        shard=shard,
        threads=threads,
        device=place.type,
    )
    work = partial(run, data, output, model=model, encoder=encoder, options=options, engine=with_engine)
    _go(work, "Encoding", room=_room(place.type, threads), json=json)


@app.command()
def decode(
    data: Latents,
    output: Output,
    model: Decoder = DEFAULT_MODEL,
    format: Format = "png",
    originals: Originals = None,
    seed: BulkSeed = None,
    noise: Noise = NoiseFrom.drawn,
    dtype: ComputeDtype = Precision.float32,
    compile: Compile = False,
    steps: Steps = None,
    guidance: Guidance = None,
    batch: BatchSize = 16,
    shard: Shard = 1024,
    threads: Threads = 1,
    workers: Workers = None,
    engine: EngineOption = "pool",
    address: Address = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Decode many latents to images.

    The latents are those of `bulk encode` in the layout parquet, or of a generator in the same columns. With
    --originals, the images are scored while they are decoded. Resumes as `bulk encode` does.
    """
    check_noise(noise, seed)
    place = pick_device(device)
    with_engine = _engine(engine, workers, address)

    from stepladder.bulk.jobs import decode as run
    from stepladder.bulk.options import DecodeOptions
    from stepladder.devices import find_dtype
    from stepladder.models import parse_model_spec

    spec = parse_model_spec(model)
    if steps is not None and spec.steps not in (None, steps):
        raise ConfigError(f"Model '{model}' and --steps {steps} name different steps. Leave one of them out.")
    options = DecodeOptions(
        format=format,
        steps=spec.steps or steps,
        guidance=guidance,
        seed=seed or 0,
        noise=noise.value,
        dtype=str(find_dtype(dtype.value, place)).removeprefix("torch."),
        compile=compile,
        batch=batch,
        shard=shard,
        threads=threads,
        device=place.type,
    )
    work = partial(run, data, output, model=spec.name, options=options, engine=with_engine, originals=originals)
    _go(work, "Decoding", room=_room(place.type, threads), json=json)


def _go(work: "Callable[..., Summary]", label: str, *, room: int, json: bool) -> NoReturn:
    """Does the work with a bar, reports it, and exits with 1 if a part failed."""
    with _progress(label) as note:
        summary = work(room=room, on_progress=note)
    _report(summary, json)
    raise typer.Exit(1 if summary.failed or summary.shards_failed else 0)


def _engine(kind: str, workers: int | None, address: str | None) -> "Engine":
    from stepladder.bulk.run import Engine

    if kind not in ("pool", "ray"):
        raise ConfigError(f"Engine '{kind}' is unknown. Accepted: pool, ray. Pass one of them as --engine.")
    if address is not None and kind != "ray":
        raise ConfigError(f"--address {address} is of a Ray cluster, and the engine is pool. Pass --engine ray, too.")
    if kind == "ray" and workers == 0:
        raise ConfigError("--workers 0 leaves Ray nobody to do the work. At least 1 is needed. Pass more.")
    known: Literal["pool", "ray"] = "ray" if kind == "ray" else "pool"
    return Engine(kind=known, workers=workers, address=address)


def _room(device: str, threads: int) -> int:
    """How many workers this machine has room for."""
    if device == "cuda":
        import torch

        return torch.cuda.device_count()
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, processors // threads)


@contextmanager
def _progress(label: str) -> "Iterator[Callable[[Progress], None]]":
    """A bar on a terminal, a line from time to time elsewhere."""
    last = time.monotonic()
    with progress_bar(label) as bar:
        task = bar.add_task("", total=None)

        def note(progress: "Progress") -> None:
            nonlocal last
            bar.update(task, completed=progress.shards, total=progress.all_shards)
            if not sys.stderr.isatty() and time.monotonic() - last >= _EVERY:
                last = time.monotonic()
                say(_line(progress))

        yield note


def _line(progress: "Progress") -> str:
    failed = f", {counted(progress.failed, 'image')} failed" if progress.failed else ""
    left = "" if progress.seconds_left is None else f", {_duration(progress.seconds_left)} left"
    return (
        f"{progress.shards:,} of {counted(progress.all_shards, 'shard')}, {rate(progress.images_per_second)} images/s"
        f"{left}{failed}"
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _report(summary: "Summary", json: bool) -> None:
    if summary.failed:
        say(f"{counted(summary.failed, 'image')} failed; they are listed in {shown(summary.output)}/errors.jsonl.")
    if summary.shards_failed:
        say(
            f"{counted(len(summary.shards_failed), 'shard')} not done. Mend the input, then run the same command again."
        )
    if json:
        print_json(summary.as_dict())
        return
    shares = ", ".join(f"{part} {share:.0%}" for part, share in summary.shares.items())
    rows: list[tuple[str, Any]] = [
        ("images", f"{summary.images:,}"),
        ("failed", f"{summary.failed:,}"),
        ("shards", f"{summary.shards:,} ({summary.shards_before:,} before)"),
        ("size", f"{summary.bytes / 2**20:,.1f} MiB"),
        ("workers", f"{summary.workers} ({summary.engine})"),
        ("time", _duration(summary.seconds)),
        ("images/s", f"{summary.images_per_second:,.2f}"),
        ("time of workers", shares),
        *((name, f"{score:.4f}") for name, score in summary.scores.items()),
    ]
    print_table(("", "value"), rows, title=f"{summary.model}, in {shown(summary.output)}", numbers=False)
