"""`stepladder decode`: a file of latents to images."""

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stepladder.cli._batches import Work, for_each
from stepladder.cli._files import check_outputs, make_folder
from stepladder.cli._models import batch_size, describe_decode, describe_steps, load_model, pick_sampler
from stepladder.cli._options import (
    AutoBatch,
    Device,
    Dtype,
    Force,
    Guidance,
    Json,
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

if TYPE_CHECKING:
    from torch import Tensor

    from stepladder.latents import StoredLatent

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
    device: Device = "auto",
    dtype: Dtype = Precision.float32,
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
    import torch

    from stepladder.cli._foreign import of_model, read_foreign
    from stepladder.images import save_png, to_pil
    from stepladder.latents import read_latents
    from stepladder.seeds import seed_of

    content = read_latents(latents) if origin is None else read_foreign(latents, model, origin)
    targets = {stored.name: out / f"{stored.name}.png" for stored in content.latents}
    check_outputs([latents], list(targets.values()), force=force)
    if model is None:
        say(f"Decoding with '{content.model}', the model that {shown(latents)} names; --model names another.")
    tokenizer, spec = load_model(content.model if model is None else model, device, steps, dtype=dtype)
    if origin is not None:
        content = of_model(content, tokenizer, origin)
    content.check_fits(
        model=spec.name,
        fingerprint=tokenizer.fingerprint(),
        layout=tokenizer.layout,
        codebook_size=tokenizer.codebook_size,
    )
    together = batch_size(batch, tokenizer.device)
    side, guided = tokenizer.tile_side(tile), tokenizer.guidance(guidance)
    taking = pick_sampler(sampler, texture, shift, tokenizer)
    make_folder(out)

    def read(stored: "StoredLatent") -> "Tensor":
        values = stored.values[None].to(tokenizer.device)
        return values if content.codebook_size is None else tokenizer.latent_from_indices(values)

    def seed_for(stored: "StoredLatent") -> int:
        return seed_of(stored.name) if seed is None else seed

    def compute(
        members: "list[StoredLatent]", group: "list[tuple[Tensor, tuple[int, int]]]"
    ) -> "list[tuple[Tensor, float]]":
        started = time.perf_counter()
        latent, seeds = torch.cat([values for values, _ in group]), [seed_for(stored) for stored in members]
        size = group[0][1]
        decoded = tokenizer.decode(
            latent, seeds=seeds, steps=spec.steps, size=size, tile=side, guidance=guided, sampler=taking
        ).cpu()
        return [(image, (time.perf_counter() - started) / len(group)) for image in decoded]

    def write(stored: "StoredLatent", _: object, result: "tuple[Tensor, float]") -> dict[str, Any]:
        image, seconds = result
        save_png(to_pil(image), targets[stored.name], force=force)
        height, width = stored.size
        return {
            "name": stored.name,
            "output": shown(targets[stored.name]),
            "seed": seed_for(stored),
            "width": width,
            "height": height,
            "seconds": seconds,
        }

    work = Work(
        read=lambda stored: (read(stored), stored.size),
        kind=lambda value: (value[0].shape, value[1]),
        batch=lambda value: together(math.prod(value[1])),
        compute=compute,
        write=write,
    )
    outcome = for_each(content.latents, work, name=_name, label="Decoding", debug=bool(context.obj))
    taken = spec.steps or tokenizer.steps_per_stage
    if json:
        print_json(
            {
                **describe_decode(tokenizer, steps=taken, seed=seed, model=spec.name, guidance=guided, sampler=taking),
                "done": outcome.done,
                "failed": outcome.failures("name"),
            }
        )
    elif outcome.done:
        print_table(
            ("image", "size", "seconds"),
            [
                (Path(done["output"]).name, f"{done['width']} x {done['height']}", f"{done['seconds']:.2f}")
                for done in outcome.done
            ],
            title=f"{describe_steps(tokenizer, taken, spec.name)}, in {shown(out)}",
            spare=("size",),
        )
    raise typer.Exit(outcome.exit_code)


def _name(stored: "StoredLatent") -> str:
    return stored.name
