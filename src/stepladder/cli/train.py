"""`stepladder train`: a training run from a configuration."""

from functools import partial
from pathlib import Path

from stepladder.cli._output import print_text
from stepladder.cli._training import Config, DryRun, Overrides, Resume, RunFolder, carry_out

__all__ = ["train"]


def train(
    config: Config,
    overrides: Overrides = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    out: RunFolder = None,
) -> None:
    """Train a tokenizer.

    Prints the folder of the trained model. The folder of the run also holds the resolved configuration, records, grids
    of reconstructions and checkpoints.
    """
    from stepladder.presets import PRESETS
    from stepladder.training.config import dump, load_config

    resolved = load_config(config, overrides or [], presets=PRESETS)
    if dry_run:
        print_text(dump(resolved))
        return

    from stepladder.training.autoencoder import train as run

    folder = out or Path("runs") / config.stem
    carry_out(partial(run, resolved), folder, steps=resolved.steps, resume=resume, verb="Training")
