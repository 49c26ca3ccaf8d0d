"""`stepladder info`: what a model is and what it costs."""

from typing import TYPE_CHECKING, Annotated

import typer

from stepladder.cli._options import Json
from stepladder.cli._output import print_json, print_table, say

if TYPE_CHECKING:
    from stepladder.measure.summary import ModelSummary

__all__ = ["info"]

Name = Annotated[
    str, typer.Argument(metavar="MODEL", help="An embedded name, a folder or a hub id.", show_default=False)
]


def info(model: Name, json: Json = False) -> None:
    """Show what a model is and what it costs.

    Parameters, ladder, the operations of one network evaluation, and what the weights were trained on.
    """
    from stepladder.checkpoints import CONFIG_FILE, WEIGHTS_FILE
    from stepladder.measure.summary import summarise
    from stepladder.models import find_model, parse_model_spec
    from stepladder.tokenizer import Tokenizer

    spec = parse_model_spec(model)
    name = spec.name
    if spec.steps is not None:
        say(f"warning: what is shown is not for a number of steps; @{spec.steps} is ignored.")
    summary = summarise(Tokenizer.from_pretrained(name))
    folder = find_model(name)
    size = sum((folder / file).stat().st_size for file in (CONFIG_FILE, WEIGHTS_FILE))
    if json:
        print_json({"model": name, **summary.as_dict(), "bytes": size})
        return
    print_table(("property", "value"), _rows(summary, size), title=name, numbers=False)
    print_table(
        ("stage", "image side / stage side", "noise from", "noise to", "GFLOP an evaluation"),
        [
            (str(index), str(stage.downscale), f"{stage.t_start:.4g}", f"{stage.t_end:.4g}", f"{stage.gflop:.2f}")
            for index, stage in enumerate(summary.stages)
        ],
    )


def _rows(summary: "ModelSummary", size: int) -> list[tuple[str, str]]:
    side, steps = summary.counted_side, summary.steps_per_stage
    return [
        ("latent", summary.latent),
        ("image size", "any" if summary.image_side is None else f"{summary.image_side} x {summary.image_side}"),
        ("encoder", summary.encoder or f"{summary.encoder_parameters:,} parameters"),
        ("decoder", f"{summary.decoder_parameters:,} parameters"),
        ("file size", f"{size / 2**20:.2f} MiB"),
        ("stages", str(len(summary.stages))),
        ("steps per stage", f"{steps} by default: {summary.network_evaluations} network evaluations"),
        ("full-resolution evaluation", f"{summary.full_resolution_gflop:.2f} GFLOP at {side} x {side}"),
        ("description", summary.description or "-"),
    ]
