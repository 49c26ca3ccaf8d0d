"""`stepladder reconstruct`: images through a tokenizer and back."""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stepladder.cli._batches import Work, for_each
from stepladder.cli._files import check_distinct, check_outputs, find_images, make_folder
from stepladder.cli._models import (
    batch_size,
    describe_decode,
    describe_steps,
    load_model,
    open_encoders,
    pick_sampler,
)
from stepladder.cli._options import (
    DEFAULT_MODEL,
    AutoBatch,
    Device,
    Dtype,
    Encoder,
    Force,
    Guidance,
    Images,
    Json,
    Model,
    OutFolder,
    OwnSeed,
    Precision,
    Sampler,
    Shift,
    Size,
    Steps,
    Texture,
    Tile,
)
from stepladder.cli._output import print_json, print_table, say, shown, talk
from stepladder.cli._terminal import Way, draw, way_to_draw

if TYPE_CHECKING:
    from PIL.Image import Image

    from stepladder.measure.reconstruction import Reconstruction

__all__ = ["reconstruct"]

_AVERAGED = ("bits_per_pixel", "psnr_db", "seconds")

Compare = Annotated[
    bool, typer.Option("--compare", help="Also write NAME-compare.png: original left, reconstruction right.")
]
Show = Annotated[
    bool, typer.Option("--show", help="Also draw the comparisons in the terminal: original left, reconstruction right.")
]
Progressive = Annotated[
    bool,
    typer.Option(
        "--progressive",
        help="Also write NAME-stage0.png, NAME-stage1.png ...: each stage of the ladder but the last, coarse first.",
    ),
]


def reconstruct(
    context: typer.Context,
    images: Images,
    out: OutFolder,
    model: Model = DEFAULT_MODEL,
    encoder: Encoder = None,
    size: Size = None,
    seed: OwnSeed = None,
    device: Device = "auto",
    dtype: Dtype = Precision.float32,
    compare: Compare = False,
    show: Show = False,
    progressive: Progressive = False,
    steps: Steps = None,
    batch: AutoBatch = "auto",
    tile: Tile = None,
    guidance: Guidance = None,
    sampler: Sampler = "euler",
    texture: Texture = 1.0,
    shift: Shift = None,
    json: Json = False,
    force: Force = False,
) -> None:
    """Encode images, decode them again and compare.

    Each image becomes DIR/NAME.png; those in folders below a folder keep their places. An image that cannot be read
    does not stop the others; it makes the exit code 1.
    """
    way = way_to_draw(talk()) if show else None
    found = find_images(images, without=out)
    stems = {image.path: out / image.name for image in found}
    outputs = [(path, _beside(stem, ".png")) for path, stem in stems.items()]
    outputs += [(path, _beside(stem, "-compare.png")) for path, stem in stems.items() if compare]
    _check(list(stems), outputs, force=force)

    from stepladder.images import centre_crop_resize, load_image, save_png, side_by_side
    from stepladder.layouts import check_side
    from stepladder.measure.reconstruction import reconstruct_together
    from stepladder.seeds import seed_of

    tokenizer, spec = load_model(model, device, steps, dtype=dtype)
    open_encoders([(spec.name, tokenizer)], encoder)
    together = batch_size(batch, tokenizer.device)
    side, guided = tokenizer.tile_side(tile), tokenizer.guidance(guidance)
    taking = pick_sampler(sampler, texture, shift, tokenizer)
    if size is not None:
        check_side(tokenizer.layout, size, spec.name)
    below = range(tokenizer.schedule.num_stages - 1 if progressive else 0)
    stages = {path: [_beside(stem, f"-stage{stage}.png") for stage in below] for path, stem in stems.items()}
    _check(list(stems), [*outputs, *((path, stage) for path in stems for stage in stages[path])], force=force)
    make_folder(out)

    written: list[Path] = []

    def read(source: Path) -> "Image":
        original = load_image(source)
        return original if size is None else centre_crop_resize(original, size)

    def compute(sources: list[Path], originals: "list[Image]") -> "list[Reconstruction]":
        seeds = [seed_of(source.stem) if seed is None else seed for source in sources]
        return reconstruct_together(
            tokenizer, originals, seeds=seeds, steps=spec.steps, tile=side, guidance=guided, sampler=taking
        )

    def write(source: Path, original: "Image", result: "Reconstruction") -> dict[str, Any]:
        target, comparison = _beside(stems[source], ".png"), _beside(stems[source], "-compare.png")
        save_png(result.image, target, force=force)
        written.append(source)
        if compare:
            save_png(side_by_side([original, result.image]), comparison, force=force)
        for stage, path in zip(result.stages, stages[source], strict=False):  # no paths unless they are asked for
            save_png(stage, path, force=force)
        return {
            "input": shown(source),
            "output": shown(target),
            "seed": seed_of(source.stem) if seed is None else seed,
            "comparison": shown(comparison) if compare else None,
            "stages": [shown(path) for path in stages[source]] if progressive else None,
            "width": original.width,
            "height": original.height,
            "latent_shape": list(result.latent_shape),
            "latent_bits": result.latent_bits,
            "bits_per_pixel": result.bits_per_pixel,
            "psnr_db": result.psnr_db,
            "seconds": result.seconds,
        }

    work = Work(
        read=read,
        kind=lambda image: image.size,
        batch=lambda image: together(image.width * image.height),
        compute=compute,
        write=write,
    )
    outcome = for_each(list(stems), work, name=shown, label="Reconstructing", debug=bool(context.obj))
    if way is not None:
        _draw([(source, _beside(stems[source], ".png")) for source in written], read, way)
    taken = spec.steps or tokenizer.steps_per_stage
    if json:
        print_json(
            {
                **describe_decode(tokenizer, steps=taken, seed=seed, model=spec.name, guidance=guided, sampler=taking),
                "mean": _means(outcome.done),
                "done": outcome.done,
                "failed": outcome.failures("input"),
            }
        )
    elif outcome.done:
        _print(outcome.done, out, title=f"{describe_steps(tokenizer, taken, spec.name)}, in {shown(out)}")
    raise typer.Exit(outcome.exit_code)


def _draw(pairs: Sequence[tuple[Path, Path]], read: Callable[[Path], "Image"], way: Way) -> None:
    """Each original beside its reconstruction, in the terminal."""
    from stepladder.images import load_image, side_by_side

    for source, target in pairs:
        say(f"{shown(target)}: original left, reconstruction right")
        draw(side_by_side([read(source), load_image(target)]), talk(), way)


def _beside(stem: Path, ending: str) -> Path:
    """A path that ends so; a stem may hold dots."""
    return stem.with_name(stem.name + ending)


def _check(sources: Sequence[Path], outputs: Sequence[tuple[Path, Path]], *, force: bool) -> None:
    """Refuses results that would meet each other, an input, or what is there; each output stands beside its source."""
    check_distinct((source, shown(path)) for source, path in outputs)
    check_outputs(sources, [path for _, path in outputs], force=force)


def _means(done: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Of the images that have a value."""
    values = {key: [row[key] for row in done if row[key] is not None] for key in _AVERAGED}
    return {key: fmean(found) if found else None for key, found in values.items()}


def _print(done: Sequence[dict[str, Any]], out: Path, *, title: str) -> None:
    rows = [
        (
            shown(Path(row["output"]).relative_to(out)),
            f"{row['width']} x {row['height']}",
            " x ".join(map(str, row["latent_shape"])),
            *_numbers(row),
        )
        for row in done
    ]
    if len(done) > 1:
        rows.append(("mean", "", "", *_numbers(_means(done))))
    print_table(
        ("image", "size", "latent", "bits a pixel", "PSNR, dB", "seconds"),
        rows,
        title=title,
        spare=("latent", "size", "bits a pixel"),
    )


def _numbers(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple("-" if row[key] is None else f"{row[key]:.2f}" for key in _AVERAGED)
