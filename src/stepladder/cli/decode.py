"""`stepladder decode`: a file of latents to images."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stepladder.cli._files import check_outputs, for_each, make_folder
from stepladder.cli._models import describe_decode, load_model
from stepladder.cli._options import Device, Force, Guidance, Json, OutFolder, Seed, Tile
from stepladder.cli._output import print_json, print_table, say, shown

if TYPE_CHECKING:
    from stepladder.latents import StoredLatent

__all__ = ["decode"]

LatentPath = Annotated[
    Path, typer.Argument(metavar="FILE", help="A latent file that `stepladder encode` wrote.", show_default=False)
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
    seed: Seed = 0,
    device: Device = None,
    tile: Tile = None,
    guidance: Guidance = None,
    json: Json = False,
    force: Force = False,
) -> None:
    """Decode a file of latents to images.

    Each becomes DIR/NAME.png, of the size of its original.
    """
    from stepladder.images import save_png, to_pil
    from stepladder.latents import read_latents

    content = read_latents(latents)
    targets = {stored.name: out / f"{stored.name}.png" for stored in content.latents}
    check_outputs([latents], list(targets.values()), force=force)
    if model is None:
        say(f"Decoding with '{content.model}', the model that {shown(latents)} names; --model names another.")
    tokenizer, spec = load_model(content.model if model is None else model, device)
    content.check_fits(
        model=spec.name,
        fingerprint=tokenizer.fingerprint(),
        layout=tokenizer.layout,
        codebook_size=tokenizer.codebook_size,
    )
    side, guided = tokenizer.tile_side(tile), tokenizer.guidance(guidance)
    make_folder(out)

    def work(stored: "StoredLatent") -> dict[str, Any]:
        started = time.perf_counter()
        values = stored.values[None].to(tokenizer.device)
        latent = values if content.codebook_size is None else tokenizer.latent_from_indices(values)
        decoded = tokenizer.decode(latent, seeds=[seed], steps=spec.steps, size=stored.size, tile=side, guidance=guided)
        image = decoded[0].cpu()
        seconds = time.perf_counter() - started
        save_png(to_pil(image), targets[stored.name], force=force)
        height, width = stored.size
        target = shown(targets[stored.name])
        return {"name": stored.name, "output": target, "width": width, "height": height, "seconds": seconds}

    outcome = for_each(
        content.latents, work, name=lambda stored: stored.name, label="Decoding", debug=bool(context.obj)
    )
    steps = spec.steps or tokenizer.steps_per_stage
    if json:
        print_json(
            {
                **describe_decode(tokenizer, steps=steps, seed=seed, model=spec.name, guidance=guided),
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
            title=f"{spec.name}, {steps} steps in each of {tokenizer.schedule.num_stages} stages, in {shown(out)}",
        )
    raise typer.Exit(outcome.exit_code)
