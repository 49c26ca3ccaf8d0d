"""`stepladder reconstruct`: images through a tokenizer and back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stepladder.cli._batches import Work, for_each
from stepladder.cli._files import check_distinct, check_outputs, find_images, make_folder
from stepladder.cli._models import (
    batch_size,
    check_noise,
    describe_decode,
    describe_steps,
    load_model,
    open_encoders,
    pick_sampler,
)
from stepladder.cli._options import (
    DEFAULT_MODEL,
    AutoBatch,
    Compile,
    Device,
    Dtype,
    Encoder,
    Force,
    Guidance,
    Images,
    Json,
    Model,
    Noise,
    NoiseFrom,
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
    from stepladder.tokenizer import Tokenizer

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
    noise: Noise = NoiseFrom.drawn,
    device: Device = "auto",
    dtype: Dtype = Precision.float32,
    compile: Compile = False,
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
    check_noise(noise, seed)
    way = way_to_draw(talk()) if show else None
    stems = {image.path: out / image.name for image in find_images(images, without=out)}
    outputs = [(path, _beside(stem, ".png")) for path, stem in stems.items()]
    outputs += [(path, _beside(stem, "-compare.png")) for path, stem in stems.items() if compare]
    _check(list(stems), outputs, force=force)
    tokenizer, spec = load_model(model, device, steps, dtype=dtype, compile=compile)
    open_encoders([(spec.name, tokenizer)], encoder)
    tokenizer.tile_side(tile)  # refuses one that does not fit
    together = batch_size(batch, tokenizer.device)
    guided, taking = tokenizer.guidance(guidance), pick_sampler(sampler, texture, shift, noise, tokenizer)
    _check_size(tokenizer, size, spec.name)
    below = range(tokenizer.schedule.num_stages - 1 if progressive else 0)
    stages = {path: [_beside(stem, f"-stage{stage}.png") for stage in below] for path, stem in stems.items()}
    _check(list(stems), [*outputs, *((path, stage) for path in stems for stage in stages[path])], force=force)
    make_folder(out)
    options = {"steps": spec.steps, "tile": tile, "guidance": guided, "sampler": taking, "noise": noise.value}
    job = _Reconstructing(
        tokenizer, stems, stages, size, seed, options, compare=compare, progressive=progressive, force=force
    )
    outcome = for_each(list(stems), job.work(together), name=shown, label="Reconstructing", debug=bool(context.obj))
    if way is not None:
        _draw([(source, _beside(stems[source], ".png")) for source in job.written], job.read, way)
    if json:
        said = describe_decode(tokenizer, options, seed=seed, model=spec.name, compile=compile)
        print_json({**said, "mean": _means(outcome.done), "done": outcome.done, "failed": outcome.failures("input")})
    elif outcome.done:
        _print(outcome.done, out, title=f"{describe_steps(tokenizer, spec.steps, spec.name)}, in {shown(out)}")
    raise typer.Exit(outcome.exit_code)


@dataclass(frozen=True, slots=True)
class _Reconstructing:
    """How images become reconstructions in files."""

    tokenizer: "Tokenizer"
    stems: dict[Path, Path]
    """Where the files of an image go, without their endings."""
    stages: dict[Path, list[Path]]
    """Files of the coarse stages of an image; none unless they are asked for."""
    size: int | None
    """Side to which images are cut."""
    seed: int | None
    """Of all; None for one of the name of each."""
    options: dict[str, Any]
    """Of `reconstruct_together`."""
    compare: bool
    progressive: bool
    force: bool
    written: list[Path] = field(default_factory=list)
    """Images that are done, in order."""

    def work(self, together: Callable[[int], int]) -> "Work[Path, Image, Reconstruction, dict[str, Any]]":
        """The parts of the work; `together` says how many images of so many pixels."""
        return Work(
            read=self.read,
            kind=lambda image: image.size,
            batch=lambda image: together(image.width * image.height),
            compute=self.compute,
            write=self.write,
        )

    def read(self, source: Path) -> "Image":
        """An image, of the size in which it is encoded."""
        from stepladder.images import centre_crop_resize, load_image

        original = load_image(source)
        return original if self.size is None else centre_crop_resize(original, self.size)

    def compute(self, sources: list[Path], originals: "list[Image]") -> "list[Reconstruction]":
        """Reconstructions of images of one size."""
        from stepladder.measure.reconstruction import reconstruct_together

        seeds = [self._seed(source) for source in sources]
        drawn = [seed for seed in seeds if seed is not None] or None
        return reconstruct_together(self.tokenizer, originals, seeds=drawn, **self.options)

    def write(self, source: Path, original: "Image", result: "Reconstruction") -> dict[str, Any]:
        """Writes the files of an image, and says what they are."""
        from stepladder.images import save_png, side_by_side

        target, comparison = _beside(self.stems[source], ".png"), _beside(self.stems[source], "-compare.png")
        save_png(result.image, target, force=self.force)
        self.written.append(source)
        if self.compare:
            save_png(side_by_side([original, result.image]), comparison, force=self.force)
        for stage, path in zip(result.stages, self.stages[source], strict=False):
            save_png(stage, path, force=self.force)
        return {
            "input": shown(source),
            "output": shown(target),
            "seed": self._seed(source),
            "comparison": shown(comparison) if self.compare else None,
            "stages": [shown(path) for path in self.stages[source]] if self.progressive else None,
            "width": original.width,
            "height": original.height,
            "latent_shape": list(result.latent_shape),
            "latent_bits": result.latent_bits,
            "bits_per_pixel": result.bits_per_pixel,
            "psnr_db": result.psnr_db,
            "seconds": result.seconds,
        }

    def _seed(self, source: Path) -> int | None:
        from stepladder.seeds import seed_of

        if self.options["noise"] == "zero":
            return None
        return seed_of(source.stem) if self.seed is None else self.seed


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


def _check_size(tokenizer: "Tokenizer", size: int | None, model: str) -> None:
    from stepladder.layouts import check_side

    if size is not None:
        check_side(tokenizer.layout, size, model)


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
        ("image", "size", "latent", "bits per pixel", "PSNR, dB", "seconds"),
        rows,
        title=title,
        spare=("latent", "size", "bits per pixel"),
    )


def _numbers(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple("-" if row[key] is None else f"{row[key]:.2f}" for key in _AVERAGED)
