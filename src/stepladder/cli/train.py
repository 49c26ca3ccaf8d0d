"""`stepladder train`: a training run from a configuration."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stepladder.cli._output import print_json, print_table, print_text, rate, say, shown
from stepladder.cli._training import DryRun, Overrides, Resume, RunFolder, Tracker, carry_out, with_tracker
from stepladder.errors import ConfigError

if TYPE_CHECKING:
    from stepladder.training.config import TrainConfig

__all__ = ["train"]

Config = Annotated[Path | None, typer.Argument(metavar="CONFIG", help="TOML or JSON file.", show_default=False)]
Init = Annotated[
    str | None,
    typer.Option(
        "--init", metavar="PRESET", help="Print a commented configuration to begin with, and stop.", show_default=False
    ),
]


Profile = Annotated[
    bool, typer.Option("--profile", help="Take a few steps, say where their time goes, and stop; leaves no run.")
]
JsonProfile = Annotated[bool, typer.Option("--json", help="With --profile, print one JSON object instead of a table.")]


def train(
    config: Config = None,
    overrides: Overrides = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    out: RunFolder = None,
    tracker: Tracker = None,
    init: Init = None,
    profile: Profile = False,
    json: JsonProfile = False,
) -> None:
    """Train a tokenizer.

    Prints the folder of the trained model. The folder of the run also holds the resolved configuration, records, grids
    of reconstructions and checkpoints. `--init photo > config.toml` writes a configuration to begin with.
    """
    from stepladder.presets import PRESETS
    from stepladder.training.config import dump, load_config
    from stepladder.training.config.starter import starter

    if json and not profile:
        raise ConfigError("--json goes with --profile, which it is the output of. Add --profile, or leave it out.")
    if init is not None:
        if config is not None:
            raise ConfigError(f"--init {init} writes a configuration and takes none. Leave out {shown(config)}.")
        print_text(starter(init, PRESETS).rstrip())
        return
    if config is None:
        raise ConfigError("No configuration is named. A TOML or JSON file is needed. Write one: --init photo > c.toml.")
    resolved = load_config(config, with_tracker(overrides, tracker), presets=PRESETS)
    if dry_run:
        print_text(dump(resolved))
        return

    from stepladder.training.autoencoder import train as run

    if profile:
        _profile(resolved, json)
        return
    folder = out or Path("runs") / config.stem
    carry_out(partial(run, resolved), folder, steps=resolved.steps, resume=resume, verb="Training")


def _profile(config: "TrainConfig", json: bool) -> None:
    from stepladder.training.autoencoder import train as run
    from stepladder.training.profile import PARTS, STEPS_TAKEN, profile_steps

    say("Profiling a few steps; nothing is kept.")
    steps = max(config.steps, STEPS_TAKEN)
    brief = replace(config, steps=steps, save_every=steps, grid_every=0, tracker=None)
    found = profile_steps(partial(run, brief), images_per_step=config.batch_size * config.accumulate)
    if json:
        print_json(found.as_dict())
        return
    rows = [(PARTS[p.name], f"{p.host_ms:.2f}", f"{p.device_ms:.2f}", f"{p.share:.1%}") for p in found.parts]
    left = 1 - sum(part.share for part in found.parts)
    print_table(
        ("part of a step", "host, ms", "device, ms", "share"),
        [*rows, ("the rest", "", "", f"{left:.1%}")],
        title=f"{found.step_ms:.1f} ms a step, {rate(found.images_per_second)} images/s, network {found.network:.0%}, "
        f"{found.device}",
        spare=("device, ms",),
    )
