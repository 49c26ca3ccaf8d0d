"""`stepladder train`: a training run from a configuration."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from stepladder.cli._output import print_text
from stepladder.cli._training import DryRun, Overrides, Resume, RunFolder, Tracker, carry_out, with_tracker
from stepladder.errors import ConfigError

__all__ = ["train"]

Config = Annotated[Path | None, typer.Argument(metavar="CONFIG", help="TOML or JSON file.", show_default=False)]
Init = Annotated[
    str | None,
    typer.Option(
        "--init", metavar="PRESET", help="Print a commented configuration to begin with, and stop.", show_default=False
    ),
]


def train(
    config: Config = None,
    overrides: Overrides = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    out: RunFolder = None,
    tracker: Tracker = None,
    init: Init = None,
) -> None:
    """Train a tokenizer.

    Prints the folder of the trained model. The folder of the run also holds the resolved configuration, records, grids
    of reconstructions and checkpoints. `--init photo > config.toml` writes a configuration to begin with.
    """
    from stepladder.presets import PRESETS
    from stepladder.training.config import dump, load_config
    from stepladder.training.config.starter import starter

    if init is not None:
        print_text(starter(init, PRESETS).rstrip())
        return
    if config is None:
        raise ConfigError("No configuration is named. A TOML or JSON file is needed. Write one: --init photo > c.toml.")
    resolved = load_config(config, with_tracker(overrides, tracker), presets=PRESETS)
    if dry_run:
        print_text(dump(resolved))
        return

    from stepladder.training.autoencoder import train as run

    folder = out or Path("runs") / config.stem
    carry_out(partial(run, resolved), folder, steps=resolved.steps, resume=resume, verb="Training")
