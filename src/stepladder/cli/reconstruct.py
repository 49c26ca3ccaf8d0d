"""`stepladder reconstruct`: images through a tokenizer and back."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from stepladder.cli._files import check_distinct, check_outputs, find_images, for_each, make_folder
from stepladder.cli._models import describe_decode, load_model
from stepladder.cli._options import (
    DEFAULT_MODEL,
    Device,
    Force,
    Guidance,
    Images,
    Json,
    Model,
    OutFolder,
    Seed,
    Size,
    Tile,
)
from stepladder.cli._output import print_json, print_table, shown

__all__ = ["reconstruct"]

Compare = Annotated[
    bool, typer.Option("--compare", help="Also write NAME-compare.png: original left, reconstruction right.")
]
Progressive = Annotated[
    bool,
    typer.Option(
        "--progressive",
        help="Also write NAME-rung0.png, NAME-rung1.png ...: each rung of the ladder but the last, coarse first.",
    ),
]


def reconstruct(
    context: typer.Context,
    images: Images,
    out: OutFolder,
    model: Model = DEFAULT_MODEL,
    size: Size = None,
    seed: Seed = 0,
    device: Device = None,
    compare: Compare = False,
    progressive: Progressive = False,
    tile: Tile = None,
    guidance: Guidance = None,
    json: Json = False,
    force: Force = False,
) -> None:
    """Encode images, decode them again and compare.

    Each image becomes DIR/NAME.png. An image that cannot be read does not stop the others; it makes the exit code 1.
    """
    sources = find_images(images)
    targets = {source: out / f"{source.stem}.png" for source in sources}
    comparisons = {source: out / f"{source.stem}-compare.png" for source in sources} if compare else {}
    outputs = [*targets.items(), *comparisons.items()]
    _check(sources, outputs, force=force)

    from stepladder.images import centre_crop_resize, load_image, save_png, side_by_side
    from stepladder.layouts import check_side
    from stepladder.measure.reconstruction import reconstruct as there_and_back

    tokenizer, spec = load_model(model, device)
    side, guided = tokenizer.tile_side(tile), tokenizer.guidance(guidance)
    if size is not None:
        check_side(tokenizer.layout, size, spec.name)
    below = range(tokenizer.schedule.num_stages - 1 if progressive else 0)
    rungs = {source: [out / f"{source.stem}-rung{rung}.png" for rung in below] for source in sources}
    _check(sources, [*outputs, *((source, path) for source in sources for path in rungs[source])], force=force)
    make_folder(out)

    def work(source: Path) -> dict[str, Any]:
        original = load_image(source)
        if size is not None:
            original = centre_crop_resize(original, size)
        result = there_and_back(tokenizer, original, seed=seed, steps=spec.steps, tile=side, guidance=guided)
        save_png(result.image, targets[source], force=force)
        if compare:
            save_png(side_by_side([original, result.image]), comparisons[source], force=force)
        for rung, path in zip(result.rungs, rungs[source], strict=False):  # no paths unless they are asked for
            save_png(rung, path, force=force)
        return {
            "input": shown(source),
            "output": shown(targets[source]),
            "comparison": shown(comparisons[source]) if compare else None,
            "rungs": [shown(path) for path in rungs[source]] if progressive else None,
            "width": original.width,
            "height": original.height,
            "latent_shape": list(result.latent_shape),
            "latent_bits": result.latent_bits,
            "bits_per_pixel": result.bits_per_pixel,
            "psnr_db": result.psnr_db,
            "seconds": result.seconds,
        }

    outcome = for_each(sources, work, name=shown, label="Reconstructing", debug=bool(context.obj))
    steps = spec.steps or tokenizer.steps_per_stage
    if json:
        print_json(
            {
                **describe_decode(tokenizer, steps=steps, seed=seed, model=spec.name, guidance=guided),
                "done": outcome.done,
                "failed": outcome.failures("input"),
            }
        )
    elif outcome.done:
        print_table(
            ("image", "size", "latent", "bits a pixel", "PSNR, dB", "seconds"),
            [_row(done) for done in outcome.done],
            title=f"{spec.name}, {steps} steps in each of {tokenizer.schedule.num_stages} stages, in {shown(out)}",
        )
    raise typer.Exit(outcome.exit_code)


def _check(sources: Sequence[Path], outputs: Sequence[tuple[Path, Path]], *, force: bool) -> None:
    """Refuses results that would meet each other, an input, or what is there; each output stands beside its source."""
    check_distinct((source, shown(path)) for source, path in outputs)
    check_outputs(sources, [path for _, path in outputs], force=force)


def _row(done: dict[str, Any]) -> tuple[str, ...]:
    psnr = "-" if done["psnr_db"] is None else f"{done['psnr_db']:.2f}"
    return (
        Path(done["output"]).name,
        f"{done['width']} x {done['height']}",
        " x ".join(map(str, done["latent_shape"])),
        f"{done['bits_per_pixel']:.2f}",
        psnr,
        f"{done['seconds']:.2f}",
    )
