"""`stepladder distill`: a many-step decoder to one network evaluation per scale."""

from functools import partial
from pathlib import Path

from stepladder.cli._output import print_text
from stepladder.cli._training import Config, DryRun, Overrides, Resume, RunFolder, Tracker, carry_out, with_tracker

__all__ = ["distill"]


def distill(
    config: Config,
    overrides: Overrides = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    out: RunFolder = None,
    tracker: Tracker = None,
) -> None:
    """Distil a model to one network evaluation per scale.

    The configuration names the teacher and one of two recipes, 'regress' or 'adversarial'. Prints the folder of the
    student; the folder of the run holds what that of `stepladder train` holds.
    """
    from stepladder.training.config import dump, load_distill_config

    resolved = load_distill_config(config, with_tracker(overrides, tracker))
    if dry_run:
        print_text(dump(resolved))
        return

    from stepladder.training.distillation import distill as run

    folder = out or Path("runs") / config.stem
    carry_out(partial(run, resolved), folder, steps=resolved.steps, resume=resume, verb="Distilling")
