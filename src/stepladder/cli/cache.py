"""`stepladder cache`: the crops of a run and their latents, encoded once."""

from pathlib import Path
from typing import Annotated

import typer

from stepladder.bounds import MAX_BATCH
from stepladder.cli._models import pick_device
from stepladder.cli._options import Device, Force
from stepladder.cli._output import print_text, progress_bar, say, shown
from stepladder.cli._training import Config, Overrides

__all__ = ["cache"]

OutFolder = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="Folder for the Parquet files.", show_default=False)
]
Passes = Annotated[int, typer.Option(min=1, metavar="N", help="Crops of each photograph.")]
Together = Annotated[
    int, typer.Option("--batch", min=1, max=MAX_BATCH, metavar="B", help="Crops that are encoded together.")
]


def cache(
    config: Config,
    out: OutFolder,
    overrides: Overrides = None,
    passes: Passes = 1,
    batch: Together = 4,
    device: Device = "auto",
    force: Force = False,
) -> None:
    """Encode the crops of a training run once, by its frozen encoder.

    CONFIG is that of `stepladder train`. The folder then holds images and latents side by side, train-*.parquet and
    validation-*.parquet; training with data.latents = true reads them and needs no encoder.
    """
    from stepladder.presets import PRESETS
    from stepladder.training.cache import cache_latents
    from stepladder.training.config import load_config

    resolved = load_config(config, overrides or [], presets=PRESETS)
    with progress_bar("Encoding") as bar:
        task = bar.add_task("", total=None)
        files = cache_latents(
            resolved,
            out,
            passes=passes,
            batch=batch,
            force=force,
            device=pick_device(device),
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    say(f'Train on them with data.latents = true and data.train = ["{shown(out)}/train-*.parquet"].')
    for file in files:
        print_text(shown(file))
