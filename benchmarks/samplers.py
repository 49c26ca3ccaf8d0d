"""Where diffusion pays: one many-step model at several numbers of steps, with several samplers.

    python benchmarks/samplers.py DATA MODEL [--size 256] [--limit N] [--crops 1] [--bootstrap 0] [--seed 0] [--batch 8]

decodes the same images with 1, 2, 4 and 8 Euler steps in each stage; with 4 and 8 of them and less texture; and with
Heun and ancestral steps. Prints the report of `stepladder evaluate` as JSON, with PSNR, MS-SSIM and FD alone.
`benchmarks/record.py NAME --command samplers --data-name TEXT -- DATA MODEL` records it.

One step is the yardstick: where a row with more steps has no lower FD, what the steps draw is worth less than nothing.
"""

import argparse
import json
import sys
from collections.abc import Sequence

from stepladder.data import open_source
from stepladder.errors import StepladderError
from stepladder.measure.evaluation import METRICS, evaluate
from stepladder.sampling.steps import EULER, SamplerConfig
from stepladder.tokenizer import Tokenizer

TRIALS: tuple[tuple[int, SamplerConfig], ...] = (
    (1, EULER),
    (2, EULER),
    (4, EULER),
    (8, EULER),
    (4, SamplerConfig(texture=0.75)),
    (4, SamplerConfig(texture=0.5)),
    (8, SamplerConfig(texture=0.75)),
    (8, SamplerConfig(texture=0.5)),
    (2, SamplerConfig(kind="heun")),
    (4, SamplerConfig(kind="heun")),
    (4, SamplerConfig(kind="ancestral")),
    (8, SamplerConfig(kind="ancestral")),
)
"""Steps in each stage, and how they are taken. Two Heun steps cost about as much as four others."""
TAKEN = ("psnr_db", "ms_ssim", "fd_efficientnet_lite2")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the measurement; returns its exit status."""
    parser = argparse.ArgumentParser(description="Measure a model with several samplers; print a report as JSON.")
    parser.add_argument("data", help="folders, .tar shards, Parquet files or a hub id")
    parser.add_argument("model", help="an embedded name, a folder or a hub id")
    for name, default in (("size", 256), ("crops", 1), ("bootstrap", 0), ("seed", 0), ("batch", 8)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"as of evaluate (default: {default})")
    parser.add_argument("--limit", type=int, help="photographs at most")
    parser.add_argument("--device", default="cpu", help="where to compute (default: cpu)")
    options = parser.parse_args(arguments)
    try:
        tokenizer = Tokenizer.from_pretrained(options.model)
        report = evaluate(
            [(options.model, tokenizer, steps, sampler) for steps, sampler in TRIALS],
            open_source(options.data),
            size=options.size,
            limit=options.limit,
            crops=options.crops,
            bootstrap=options.bootstrap,
            seed=options.seed,
            batch=options.batch,
            device=options.device,
            metrics=[metric for metric in METRICS if metric.key in TAKEN],
        )
    except StepladderError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(report.as_dict(), indent=2, allow_nan=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
