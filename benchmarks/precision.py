"""What half precision costs: PSNR of models in float32 and in bfloat16, on the same images, with the same seeds.

    python benchmarks/precision.py DATA [MODEL@N ...] [--limit 16]

Without models, those of the folder `models` are compared, each with its own steps, at most four in each stage. Images
are cut to the central square, of 256 x 256 or of the one size that a model takes; networks of encoder and decoder both
compute in the precision. `benchmarks/record.py NAME --command precision` records it.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from stepladder import __version__
from stepladder.data import ImageSource, evaluation_images, open_source
from stepladder.encoders import FrozenEncoder
from stepladder.errors import StepladderError
from stepladder.layouts import TokenLayout
from stepladder.measure.metrics import psnr, quantise
from stepladder.models import ModelSpec, parse_model_spec
from stepladder.tokenizer import Tokenizer

MODELS = Path(__file__).resolve().parent.parent / "models"
MOST_STEPS = 4
SIDE = 256
DTYPES = (torch.float32, torch.bfloat16)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the measurement; returns its exit status."""
    parser = argparse.ArgumentParser(description="Measure models in float32 and bfloat16; print a report as JSON.")
    parser.add_argument("data", help="as `stepladder evaluate` takes it")
    parser.add_argument("models", nargs="*", help="names or folders, with steps (default: all that are released)")
    parser.add_argument("--limit", type=int, default=16, help="images (default: 16)")
    options = parser.parse_args(arguments)
    try:
        source = open_source(options.data)
        models = options.models or released()
        rows = [compare(parse_model_spec(model), source, options.limit) for model in models]
    except StepladderError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    report = {
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "version": __version__,
        "seed": 0,
        "images": min(options.limit, len(source)),
        "size": SIDE,
        "rows": rows,
    }
    print(json.dumps(report, indent=2, allow_nan=False))
    return 0


def released() -> list[str]:
    """The models of this repository that can encode, in at most `MOST_STEPS` steps a stage."""
    found = []
    for folder in sorted(path for path in MODELS.iterdir() if path.is_dir()):
        name = os.path.relpath(folder) if (folder / "config.json").is_file() else folder.name  # the embedded one
        tokenizer = Tokenizer.from_pretrained(name)
        if not isinstance(tokenizer.encoder, FrozenEncoder):
            found.append(f"{name}@{min(MOST_STEPS, tokenizer.steps_per_stage)}")
    return found


def compare(spec: ModelSpec, source: ImageSource, limit: int) -> dict[str, Any]:
    """A model in both precisions."""
    tokenizer = Tokenizer.from_pretrained(spec.name)
    side = tokenizer.layout.side if isinstance(tokenizer.layout, TokenLayout) else SIDE
    single, half = (fmean(_quality(tokenizer.to_precision(dtype), source, side, limit, spec.steps)) for dtype in DTYPES)
    return {
        "model": spec.name,
        "steps_per_stage": spec.steps or tokenizer.steps_per_stage,
        "size": side,
        "psnr_db_float32": single,
        "psnr_db_bfloat16": half,
        "psnr_change_db": half - single,
    }


def _quality(tokenizer: Tokenizer, source: ImageSource, side: int, limit: int, steps: int | None) -> Iterator[float]:
    for _, image in evaluation_images(source, size=side, limit=limit):
        decoded = tokenizer.decode(tokenizer.encode(image[None]), seeds=[0], steps=steps)
        yield psnr(quantise(decoded), quantise(image[None])).item()


if __name__ == "__main__":
    sys.exit(main())
