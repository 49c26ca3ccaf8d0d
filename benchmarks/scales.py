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
from collections.abc import Sequence
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
from stepladder.measure.sharing import shared_batches
from stepladder.models import ModelSpec, parse_model_spec
from stepladder.processes import Processes
from stepladder.sampling.scales import down
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
        specs = [parse_model_spec(name) for name in options.models]
        models = [(spec, Tokenizer.from_pretrained(spec.name)) for spec in specs]
        count, rows = measure(models, images, network, seed=options.seed, batch=options.batch)
    except StepladderError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    report = {
        "data": images.source.name,
        "images": count,
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
    models: Sequence[tuple[ModelSpec, Tokenizer]],
    images: EvaluationImages,
    network: FeatureNetwork,
    *,
    seed: int,
    batch: int,
) -> tuple[int, list[dict[str, Any]]]:
    """How many images there are, and a row for each stage of each model."""
    originals: dict[int, FeatureStatistics] = {}  # by downscale
    found = [[_Found() for _ in tokenizer.schedule.stages] for _, tokenizer in models]
    downscales = {stage.downscale for _, tokenizer in models for stage in tokenizer.schedule.stages}
    count = 0
    for first, references in shared_batches(images, batch, Processes()):
        assert references is not None, "one process has all batches"
        wanted = {}
        for downscale in downscales:
            wanted[downscale] = quantise(down(references, downscale))
            originals.setdefault(downscale, FeatureStatistics()).update(network(wanted[downscale]))
        count = first + len(references)
        seeds = range(seed + first, seed + count)
        for (spec, tokenizer), scales in zip(models, found, strict=True):
            code = tokenizer.encode(references)
            initial = tokenizer.decoder.network.context(code.latent).initial
            decoded = tokenizer.decode_progressively(code, seeds=seeds, steps=spec.steps)
            for stage, scale, image in zip(tokenizer.schedule.stages, scales, decoded, strict=True):
                scale.add("stage", image, wanted[stage.downscale], network)
                if initial is not None:
                    scale.add("initial", down(initial, stage.downscale), wanted[stage.downscale], network)
    return count, [
        {
            "model": spec.name,
            "steps_per_stage": spec.steps or tokenizer.steps_per_stage,
            "batch": batch,
            "stage": stage.index,
            "scale_side": images.size // stage.downscale,
            **scale.against(originals[stage.downscale]),
        }
        for (spec, tokenizer), scales in zip(models, found, strict=True)
        for stage, scale in zip(tokenizer.schedule.stages, scales, strict=True)
    ]


class _Found:
    """Images of a stage, and initial estimates at its scale."""

    def __init__(self) -> None:
        self.kinds: dict[str, tuple[list[float], FeatureStatistics]] = {}

    def add(self, kind: str, images: Tensor, wanted: Tensor, network: FeatureNetwork) -> None:
        """Adds a batch, beside the originals at that scale in [0, 1]."""
        values, features = self.kinds.setdefault(kind, ([], FeatureStatistics()))
        images = quantise(images)
        values += psnr(images, wanted).tolist()
        features.update(network(images))

    def against(self, originals: FeatureStatistics) -> dict[str, float]:
        """What was measured; nothing of the initial estimate where there is none."""
        measured: dict[str, float] = {}
        for kind, (values, features) in self.kinds.items():
            measured |= {f"{kind}_psnr_db": fmean(values), f"{kind}_fd": frechet_distance(originals, features)}
        return measured


if __name__ == "__main__":
    sys.exit(main())
