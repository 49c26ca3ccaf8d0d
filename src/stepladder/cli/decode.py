"""`stepladder decode`: a file of latents to images."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stepladder.cli._batches import Work, for_each
from stepladder.cli._files import check_outputs, make_folder
from stepladder.cli._models import batch_size, check_noise, describe_decode, describe_steps, load_model, pick_sampler
from stepladder.cli._options import (
    AutoBatch,
    Compile,
    Device,
    Dtype,
    Force,
    Guidance,
    Json,
    Noise,
    NoiseFrom,
    OutFolder,
    OwnSeed,
    Precision,
    Sampler,
    Shift,
    Steps,
    Texture,
    Tile,
)
from stepladder.cli._output import print_json, print_table, say, shown
from stepladder.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from stepladder.latents import LatentFile, StoredLatent
    from stepladder.tokenizer import Tokenizer

__all__ = ["decode"]

LatentPath = Annotated[
    Path,
    typer.Argument(
        metavar="FILE",
        help="A latent file that `stepladder encode` wrote; with --from, a .npy file.",
        show_default=False,
    ),
]
Origin = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="SCALE",
        help="FILE holds latents (c, h, w) or (B, c, h, w) of the frozen encoder that --model belongs to: 'raw', as "
        "that encoder gives them, or 'pipeline', as a diffusion pipeline works on them.",
        show_default=False,
    ),
]
Decoder = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL@N",
        help="An embedded name, a folder or a hub id; @N sets N steps per stage. Without it, the model that encoded.",
        show_default=False,
    ),
]


def decode(
    context: typer.Context,
    latents: LatentPath,
    out: OutFolder,
    model: Decoder = None,
    seed: OwnSeed = None,
    noise: Noise = NoiseFrom.drawn,
    device: Device = "auto",
    dtype: Dtype = Precision.float32,
    compile: Compile = False,
    steps: Steps = None,
    batch: AutoBatch = "auto",
    tile: Tile = None,
    guidance: Guidance = None,
    origin: Origin = None,
    sampler: Sampler = "euler",
    texture: Texture = 1.0,
    shift: Shift = None,
    json: Json = False,
    force: Force = False,
) -> None:
    """Decode a file of latents to images.

    Each becomes DIR/NAME.png, of the size of its original.
    """
    check_noise(noise, seed)
    from stepladder.cli._foreign import of_model, read_foreign
    from stepladder.latents import read_latents

    if origin is None and latents.suffix == ".npy":
        raise ConfigError(
            f"{shown(latents)} is an array of latents, and does not say what they are. Accepted: --from raw or --from "
            "pipeline, with --model, or a file that 'stepladder encode' wrote. Add both options."
        )
    content = read_latents(latents) if origin is None else read_foreign(latents, model, origin)
    targets = {stored.name: out / f"{stored.name}.png" for stored in content.latents}
    check_outputs([latents], list(targets.values()), force=force)
    if model is None:
        say(f"Decoding with '{content.model}', the model that {shown(latents)} names; --model names another.")
    named = content.model if model is None else model
    tokenizer, spec = load_model(named, device, steps, dtype=dtype, compile=compile)
    if origin is not None:
        content = of_model(content, tokenizer, origin)
    content.check_fits(
        model=spec.name,
        fingerprint=tokenizer.fingerprint(),
        layout=tokenizer.layout,
        codebook_size=tokenizer.codebook_size,
    )
    together = batch_size(batch, tokenizer.device)
    tokenizer.tile_side(tile)  # refuses one that does not fit
    guided = tokenizer.guidance(guidance)
    taking = pick_sampler(sampler, texture, shift, noise, tokenizer)
    make_folder(out)
    options = {"steps": spec.steps, "tile": tile, "guidance": guided, "sampler": taking, "noise": noise.value}
    decoding = _Decoding(tokenizer, content, targets, seed, options, force=force)
    outcome = for_each(content.latents, decoding.work(together), name=_name, label="Decoding", debug=bool(context.obj))
    if json:
        said = describe_decode(tokenizer, options, seed=seed, model=spec.name, compile=compile)
        print_json({**said, "done": outcome.done, "failed": outcome.failures("name")})
    elif outcome.done:
        _print(outcome.done, f"{describe_steps(tokenizer, spec.steps, spec.name)}, in {shown(out)}")
    raise typer.Exit(outcome.exit_code)


@dataclass(frozen=True, slots=True)
class _Decoding:
    """How latents become files."""

    tokenizer: "Tokenizer"
    content: "LatentFile"
    targets: dict[str, Path]
    """Where each goes, by its name."""
    seed: int | None
    """Of all; None for one of the name of each."""
    options: dict[str, Any]
    """Of `Tokenizer.decode`."""
    force: bool

    def work(
        self, together: Callable[[int], int]
    ) -> "Work[StoredLatent, tuple[Tensor, tuple[int, int]], tuple[Tensor, float], dict[str, Any]]":
        """The parts of the work; `together` says how many images of so many pixels."""
        return Work(
            read=self.read,
            kind=lambda value: (value[0].shape, value[1]),
            batch=lambda value: together(math.prod(value[1])),
            compute=self.compute,
            write=self.write,
        )

    def read(self, stored: "StoredLatent") -> "tuple[Tensor, tuple[int, int]]":
        """A latent that can be decoded, and the size of its image."""
        values = stored.values[None].to(self.tokenizer.device)
        if self.content.codebook_size is not None:
            values = self.tokenizer.latent_from_indices(values)
        return values, stored.size

    def compute(
        self, members: "list[StoredLatent]", group: "list[tuple[Tensor, tuple[int, int]]]"
    ) -> "list[tuple[Tensor, float]]":
        """The images of latents of one kind, each with its share of the time."""
        import torch

        started = time.perf_counter()
        latent, seeds = torch.cat([values for values, _ in group]), [self._seed(stored) for stored in members]
        drawn = [seed for seed in seeds if seed is not None] or None
        decoded = self.tokenizer.decode(latent, seeds=drawn, size=group[0][1], **self.options).cpu()
        return [(image, (time.perf_counter() - started) / len(group)) for image in decoded]

    def write(self, stored: "StoredLatent", _: object, result: "tuple[Tensor, float]") -> dict[str, Any]:
        """Writes an image, and says so."""
        from stepladder.images import save_png, to_pil

        image, seconds = result
        save_png(to_pil(image), self.targets[stored.name], force=self.force)
        height, width = stored.size
        return {
            "name": stored.name,
            "output": shown(self.targets[stored.name]),
            "seed": self._seed(stored),
            "width": width,
            "height": height,
            "seconds": seconds,
        }

    def _seed(self, stored: "StoredLatent") -> int | None:
        from stepladder.seeds import seed_of

        if self.options["noise"] == "zero":
            return None
        return seed_of(stored.name) if self.seed is None else self.seed


def _print(rows: list[dict[str, Any]], title: str) -> None:
    cells = [(Path(row["output"]).name, f"{row['width']} x {row['height']}", f"{row['seconds']:.2f}") for row in rows]
    print_table(("image", "size", "seconds"), cells, title=title, spare=("size",))


def _name(stored: "StoredLatent") -> str:
    return stored.name
