"""What each stage of a ladder decides: how the images of one latent differ over seeds.

    python benchmarks/decisions.py DATA MODEL@N [MODEL@N ...] [--size 256] [--limit 8] [--seeds 8] [--picture FILE]

decodes each image with several seeds; prints, for each model and stage, the standard deviation over seeds of the image
of the stage (`spread`) and of what the stage adds to the one before (`decided`), on [-1, 1], as JSON. The picture has a
row for each model: the first original, its reconstruction with one seed, and for each stage where its images differ,
five times as strong. `benchmarks/record.py NAME --command decisions --data-name TEXT -- DATA MODEL@N` records it.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from stepladder import __version__
from stepladder.data import evaluation_images, open_source
from stepladder.errors import StepladderError
from stepladder.images import grid, save_png, to_pil
from stepladder.measure.decisions import decisions, mean_decisions, spread_maps
from stepladder.models import ModelSpec, parse_model_spec
from stepladder.tokenizer import Tokenizer

STRENGTH = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the measurement; returns its exit status."""
    parser = argparse.ArgumentParser(description="Measure what stages decide; print a report as JSON.")
    parser.add_argument("data", help="a folder, .tar shards, Parquet files or a hub id")
    parser.add_argument("models", nargs="+", metavar="MODEL@N", help="@N sets N steps per stage")
    for name, default in (("size", 256), ("limit", 8), ("seeds", 8)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"(default: {default})")
    parser.add_argument("--picture", type=Path, help="write this picture, too")
    options = parser.parse_args(arguments)
    try:
        source = open_source(options.data)
        images = [image[None] for _, image in evaluation_images(source, size=options.size, limit=options.limit)]
        specs = [parse_model_spec(name) for name in options.models]
        models = [(spec, Tokenizer.from_pretrained(spec.name)) for spec in specs]
        rows = [row for spec, tokenizer in models for row in measure(spec, tokenizer, images, options.seeds)]
        if options.picture:
            drawn = [picture(spec, tokenizer, images[0], options.seeds) for spec, tokenizer in models]
            columns = max(map(len, drawn))
            blank = Image.new("RGB", drawn[0][0].size, "white")
            cells = [cell for row in drawn for cell in (*row, *[blank] * (columns - len(row)))]
            save_png(grid(cells, columns=columns), options.picture, force=True)
    except StepladderError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    report = {
        "data": source.name,
        "images": len(images),
        "size": options.size,
        "seeds": options.seeds,
        "seed": 0,
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "version": __version__,
        "rows": rows,
    }
    print(json.dumps(report, indent=2, allow_nan=False))
    return 0


def measure(
    spec: ModelSpec, tokenizer: Tokenizer, images: Sequence[Tensor], seeds: int
) -> list[dict[str, str | int | float]]:
    """A row for each stage of a model."""
    found = [decisions(tokenizer, tokenizer.encode(image), seeds=range(seeds), steps=spec.steps) for image in images]
    steps = spec.steps or tokenizer.steps_per_stage
    return [{"model": spec.name, "steps_per_stage": steps, **stage.as_dict()} for stage in mean_decisions(found)]


def picture(spec: ModelSpec, tokenizer: Tokenizer, image: Tensor, seeds: int) -> list[Image.Image]:
    """Original, reconstruction, and where each stage differs over seeds, at one size."""
    code = tokenizer.encode(image)
    reconstruction = tokenizer.decode(code, seeds=[0], steps=spec.steps)
    maps = [
        map_.mul(STRENGTH).clamp(0, 1).expand(-1, 3, -1, -1) * 2 - 1
        for map_ in spread_maps(tokenizer, code, seeds=range(seeds), steps=spec.steps)
    ]
    side = (image.shape[3], image.shape[2])
    return [to_pil(each[0]).resize(side, Image.Resampling.NEAREST) for each in (image, reconstruction, *maps)]


if __name__ == "__main__":
    sys.exit(main())
