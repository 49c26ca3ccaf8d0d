"""`stepladder schedule`: what a latent leaves open at each scale, and what each stage adds."""

from typing import TYPE_CHECKING, Annotated

import typer

from stepladder.bounds import MAX_SIDE
from stepladder.cli._models import load_model, open_encoders
from stepladder.cli._options import Device, Encoder, Json
from stepladder.cli._output import print_json, print_table, print_text

if TYPE_CHECKING:
    from stepladder.measure.stages import StageContribution

__all__ = ["schedule"]

Name = Annotated[str, typer.Argument(metavar="MODEL@N", help="A model; @N sets N steps per stage.", show_default=False)]
Data = Annotated[
    list[str],
    typer.Argument(metavar="DATA...", help="Folders, .tar shards, Parquet files or a hub id.", show_default=False),
]
Side = Annotated[int, typer.Option("--size", min=1, max=MAX_SIDE, metavar="N", help="Side to which images are cut.")]
Limit = Annotated[int | None, typer.Option(min=1, metavar="N", help="Images at most.", show_default=False)]
Stages = Annotated[
    int | None,
    typer.Option(min=1, max=8, metavar="K", help="Scales; those of the model by default.", show_default=False),
]
Contributions = Annotated[bool, typer.Option("--contributions", help="Also show what each stage of the model adds.")]


def schedule(
    model: Name,
    data: Data,
    size: Side = 256,
    limit: Limit = 64,
    stages: Stages = None,
    contributions: Contributions = False,
    encoder: Encoder = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Measure what the latent leaves open at each scale, and propose where stages end.

    Prints the lines to paste into the configuration of a training run.
    """
    from stepladder.data import open_source
    from stepladder.measure import stages as measure
    from stepladder.sampling.stages import proposed_ends

    tokenizer, spec = load_model(model, device)
    open_encoders([(spec.name, tokenizer)], encoder)
    source = open_source(data)
    found = measure.residuals(tokenizer, source, size=size, limit=limit, stages=stages)
    ends = proposed_ends(found)
    added = []
    if contributions:
        added = measure.contributions(tokenizer, source, size=size, limit=limit, steps=spec.steps)
    if json:
        rows = [row.as_dict() for row in added]
        print_json({"model": str(spec), "residuals": found, "ends": ends, "contributions": rows or None})
        return
    print_text("[tokenizer.ladder]")
    print_text(f"num_stages = {len(found)}")
    print_text(f"ends = [{', '.join(f'{end:.3g}' for end in ends)}]")
    print_text(f"residuals = [{', '.join(f'{value:.3g}' for value in found)}]")
    if added:
        print_table(("stage", "downscale", "PSNR, dB", "initial, dB", "added", "lost without it, dB"), _rows(added))


def _rows(added: "list[StageContribution]") -> list[tuple[str, ...]]:
    return [
        (
            str(row.stage),
            str(row.downscale),
            f"{row.psnr_db:.2f}",
            "-" if row.initial_psnr_db is None else f"{row.initial_psnr_db:.2f}",
            f"{row.added:.4f}",
            f"{row.loss_db:.3f}",
        )
        for row in added
    ]
