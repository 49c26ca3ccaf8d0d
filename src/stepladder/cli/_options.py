"""Arguments and options that several commands share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from stepladder.bounds import MAX_BATCH, MAX_SIDE, MAX_STEPS

__all__ = [
    "DEFAULT_MODEL",
    "AutoBatch",
    "Batch",
    "Compile",
    "Device",
    "Dtype",
    "Encoder",
    "Force",
    "Guidance",
    "Images",
    "Json",
    "Model",
    "Noise",
    "NoiseFrom",
    "OutFolder",
    "OwnSeed",
    "Precision",
    "Sampler",
    "Seed",
    "Shift",
    "Size",
    "Steps",
    "Texture",
    "Tile",
]

DEFAULT_MODEL = "photo"

_MAX_SEED = 2**63 - 1

Images: TypeAlias = Annotated[
    list[Path], typer.Argument(metavar="IMAGE", help="Image files, or folders of images.", show_default=False)
]
OutFolder: TypeAlias = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="Folder for the results; made if missing.", show_default=False)
]
Model: TypeAlias = Annotated[
    str,
    typer.Option(
        "--model", metavar="MODEL@N", help="An embedded name, a folder or a hub id; @N sets N steps per stage."
    ),
]
Seed: TypeAlias = Annotated[
    int,
    typer.Option(
        min=0,
        max=_MAX_SEED,
        metavar="S",
        help="Seed of the noise. No image depends on the others.",
    ),
]
OwnSeed: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--seed",
        min=0,
        max=_MAX_SEED,
        metavar="S",
        help="Seed of the noise, of every image. Without it, each image has the seed that its name gives: the same "
        "alone or in a batch.",
        show_default=False,
    ),
]
Device: TypeAlias = Annotated[
    str, typer.Option(metavar="D", help="cpu, cuda, cuda:1, mps, xpu; auto takes an accelerator where there is one.")
]
Encoder: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--encoder",
        metavar="PATH",
        help="Where the frozen encoder of a model is that holds a decoder alone: a file, a folder or a hub id. Without "
        "it, where the model says.",
        show_default=False,
    ),
]
Batch: TypeAlias = Annotated[
    int, typer.Option(min=1, max=MAX_BATCH, metavar="B", help="Images that are worked on together.")
]
AutoBatch: TypeAlias = Annotated[
    str,
    typer.Option(
        metavar="B|auto",
        help="Neighbours of one size that are worked on together, at most; auto goes by their size and the device.",
    ),
]


class Precision(StrEnum):
    """Precision of networks."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


Dtype: TypeAlias = Annotated[
    Precision,
    typer.Option("--dtype", help="What networks compute in; auto takes bfloat16 where the device is fast in it."),
]
Compile: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="Compile the decoder's network first, once for each stage: minutes, which pay where much is decoded.",
    ),
]


class NoiseFrom(StrEnum):
    """Where the noise of a decode comes from."""

    drawn = "drawn"
    zero = "zero"


Noise: TypeAlias = Annotated[
    NoiseFrom,
    typer.Option(
        "--noise",
        help="Noise drawn from seeds; or zero, which gives the same image every time and suits models of one step.",
    ),
]
Steps: TypeAlias = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=MAX_STEPS,
        metavar="N",
        help="Steps in each stage, for models that are named without @N; without both, as the model says.",
        show_default=False,
    ),
]
Size: TypeAlias = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=MAX_SIDE,
        metavar="N",
        help="Cut each image to its central square and resize it to N x N first. Without it, images stay as they are.",
        show_default=False,
    ),
]
Tile: TypeAlias = Annotated[
    int | None,
    typer.Option(
        max=2**16,
        metavar="N",
        help="Work on longer sides in tiles of this side; 0 for none. Without it, as the model says.",
        show_default=False,
    ),
]
Guidance: TypeAlias = Annotated[
    float | None,
    typer.Option(
        metavar="SCALE",
        help="Classifier-free guidance on the latent: 0 without it, 1 with it, more goes beyond. Without this option, "
        "as the model says.",
        show_default=False,
    ),
]
Sampler: TypeAlias = Annotated[
    str,
    typer.Option(
        "--sampler",
        metavar="KIND",
        help="Kind of step: euler; heun, of two evaluations; or ancestral, which draws fresh noise in every step.",
    ),
]
Texture: TypeAlias = Annotated[
    float,
    typer.Option(
        metavar="T",
        help="How much of the texture that several steps draw is shown: 0 for none (best PSNR), 1 for all of it.",
    ),
]
Shift: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="S",
        help="Time shift of all stages, or one for each (0.3,0.5,1): below 1, steps are denser at low noise. Without "
        "it, as the residual of each stage asks for.",
        show_default=False,
    ),
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Force: TypeAlias = Annotated[bool, typer.Option("--force", help="Replace files that exist.")]
