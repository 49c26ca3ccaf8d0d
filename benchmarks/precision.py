"""What half precision costs: PSNR of models in float32 and in bfloat16, on the same images, with the same seeds.

    python benchmarks/precision.py IMAGES MODEL@N [MODEL@N ...] [--limit 16]

Images are cut to the central square, of 256 x 256 or of the one size that a model takes; networks of encoder and
decoder both compute in the precision. `benchmarks/record.py NAME --command precision` records it.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from stepladder import __version__
from stepladder.errors import StepladderError
from stepladder.images import centre_crop_resize, image_files, load_image, to_tensor
from stepladder.layouts import TokenLayout
from stepladder.measure.metrics import psnr, quantise
from stepladder.models import ModelSpec, parse_model_spec
from stepladder.tokenizer import Tokenizer

SIDE = 256
DTYPES = (torch.float32, torch.bfloat16)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the measurement; returns its exit status."""
    parser = argparse.ArgumentParser(description="Measure models in float32 and bfloat16; print a report as JSON.")
    parser.add_argument("images", type=Path, help="folder of images")
    parser.add_argument("models", nargs="+", help="names or folders, with steps")
    parser.add_argument("--limit", type=int, default=16, help="images (default: 16)")
    options = parser.parse_args(arguments)
    try:
        files = image_files(options.images)[: options.limit]
        rows = [compare(parse_model_spec(model), files) for model in options.models]
    except StepladderError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    report = {
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "version": __version__,
        "seed": 0,
        "images": len(files),
        "size": SIDE,
        "rows": rows,
    }
    print(json.dumps(report, indent=2, allow_nan=False))
    return 0


def compare(spec: ModelSpec, files: Sequence[Path]) -> dict[str, Any]:
    """A model in both precisions."""
    tokenizer = Tokenizer.from_pretrained(spec.name)
    side = tokenizer.layout.side if isinstance(tokenizer.layout, TokenLayout) else SIDE
    single, half = (fmean(_quality(tokenizer.to_precision(dtype), files, side, spec.steps)) for dtype in DTYPES)
    return {
        "model": spec.name,
        "steps_per_stage": spec.steps or tokenizer.steps_per_stage,
        "size": side,
        "psnr_db_float32": single,
        "psnr_db_bfloat16": half,
        "psnr_change_db": half - single,
    }


@torch.inference_mode()
def _quality(tokenizer: Tokenizer, files: Sequence[Path], side: int, steps: int | None) -> Iterator[float]:
    for file in files:
        image: Tensor = to_tensor(centre_crop_resize(load_image(file), side))[None]
        decoded = tokenizer.decode(tokenizer.encode(image), seeds=[0], steps=steps)
        yield psnr(quantise(decoded), quantise(image)).item()


if __name__ == "__main__":
    sys.exit(main())
