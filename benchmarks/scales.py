"""How good the image of each stage is at its own scale: PSNR and FD, beside those of the initial estimate there.

    python benchmarks/scales.py DATA MODEL@N [MODEL@N ...] [--size 256] [--limit N] [--crops 1] [--seed 0] [--batch 8]

decodes each image and prints, for each model and stage, as JSON, PSNR and FD in EfficientNet-Lite2 of the stage's
images, and of the initial estimates, against the originals at that scale (the mean of blocks, as the ladder has it). A
stage that draws well has a lower FD than the initial estimate, whatever later stages do with its image.
`benchmarks/record.py NAME --command scales --data-name TEXT -- DATA MODEL@N` records it.

FD depends on the side: compare it within one scale only.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from stepladder import __version__
from stepladder.data import EvaluationImages, evaluation_images, open_source
from stepladder.errors import StepladderError
from stepladder.measure.evaluation import METRICS
from stepladder.measure.metrics import FeatureStatistics, FrechetMetric, frechet_distance, psnr, quantise
from stepladder.measure.metrics.base import FeatureNetwork
from stepladder.models import ModelSpec, parse_model_spec
from stepladder.sampling.scales import down
from stepladder.sampling.stages import Stage
from stepladder.tokenizer import Tokenizer

LITE2 = next(m for m in METRICS if isinstance(m, FrechetMetric) and m.key == "fd_efficientnet_lite2")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the measurement; returns its exit status."""
    parser = argparse.ArgumentParser(description="Measure the image of each stage; print a report as JSON.")
    parser.add_argument("data", help="a folder, .tar shards, Parquet files or a hub id")
    parser.add_argument("models", nargs="+", metavar="MODEL@N", help="@N sets N steps per stage")
    for name, default in (("size", 256), ("crops", 1), ("seed", 0), ("batch", 8)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"as of evaluate (default: {default})")
    parser.add_argument("--limit", type=int, help="photographs at most")
    options = parser.parse_args(arguments)
    try:
        images = evaluation_images(
            open_source(options.data), size=options.size, limit=options.limit, crops=options.crops
        )
        network = LITE2.load(torch.device("cpu"))
        rows = []
        for spec in map(parse_model_spec, options.models):
            tokenizer = Tokenizer.from_pretrained(spec.name)
            rows += measure(spec, tokenizer, images, network, seed=options.seed, batch=options.batch)
    except StepladderError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    report = {
        "data": images.source.name,
        "images": sum(1 for _ in images),
        "crops": options.crops,
        "size": options.size,
        "seed": options.seed,
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "version": __version__,
        "rows": rows,
    }
    print(json.dumps(report, indent=2, allow_nan=False))
    return 0


@torch.no_grad()
def measure(
    spec: ModelSpec, tokenizer: Tokenizer, images: EvaluationImages, network: FeatureNetwork, *, seed: int, batch: int
) -> list[dict[str, Any]]:
    """A row for each stage of a model."""
    scales = [_Scale(stage, network) for stage in tokenizer.schedule.stages]
    for references in _batches(images, batch):
        code = tokenizer.encode(references)
        initial = tokenizer.decoder.network.context(code.latent).initial
        seeds = range(seed, seed + len(references))
        for scale, image in zip(
            scales, tokenizer.decode_progressively(code, seeds=seeds, steps=spec.steps), strict=True
        ):
            scale.add(references, image, initial)
        seed += len(references)
    steps = spec.steps or tokenizer.steps_per_stage
    return [
        {"model": spec.name, "steps_per_stage": steps, "batch": batch, **scale.row(images.size)} for scale in scales
    ]


class _Scale:
    """Originals, images of the stage and initial estimates at the scale of one stage."""

    def __init__(self, stage: Stage, network: FeatureNetwork) -> None:
        self.stage, self.network = stage, network
        self.originals = FeatureStatistics()
        self.found: dict[str, tuple[list[float], FeatureStatistics]] = {}

    def add(self, references: Tensor, image: Tensor, initial: Tensor | None) -> None:
        """Adds a batch: originals and initial estimates at full size, the images of the stage at theirs."""
        wanted = quantise(down(references, self.stage.downscale))
        self.originals.update(self.network(wanted))
        estimate = None if initial is None else down(initial, self.stage.downscale)
        for kind, images in (("initial", estimate), ("stage", image)):
            if images is not None:
                values, features = self.found.setdefault(kind, ([], FeatureStatistics()))
                values += psnr(quantise(images), wanted).tolist()
                features.update(self.network(quantise(images)))

    def row(self, size: int) -> dict[str, int | float]:
        """What was measured; nothing of the initial estimate where there is none."""
        row: dict[str, int | float] = {"stage": self.stage.index, "scale_side": size // self.stage.downscale}
        for kind, (values, features) in self.found.items():
            row |= {f"{kind}_psnr_db": fmean(values), f"{kind}_fd": frechet_distance(self.originals, features)}
        return row


def _batches(images: EvaluationImages, batch: int) -> Iterator[Tensor]:
    each = (image for _, image in images)
    while part := list(islice(each, batch)):
        yield torch.stack(part)


if __name__ == "__main__":
    sys.exit(main())
