"""What one step on each scale of a ladder costs, against steps at full resolution.

Such a decode evaluates the network at the sides H / 2^(K-1), ..., H / 2, H. An evaluation costs about as much as it has
pixels, so in units of one step at full resolution

    cost(K) = 1 + 1/4 + ... + 1/4^(K-1) = (4 - 4^(1-K)) / 3  <  4/3        and N steps at full resolution cost N

Each further scale adds a quarter of what the one before added, and doubles the ratio of the finest side to the
coarsest: a ratio of R takes K = 1 + log2(R) evaluations.

    python benchmarks/ladder_cost.py [--size 256] [--batch 1] [--repeats 5] [--device cpu]

decodes with the network of the preset `photo` on ladders of K = 1, 2, 3 and 4 scales, one step on each, and with 2, 4
and 8 steps at full resolution; prints the report of `stepladder benchmark` as JSON. The weights are fresh: they do not
change the time. `benchmarks/record.py NAME --command ladder-cost` records it.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace

from stepladder.errors import StepladderError
from stepladder.measure.benchmarking import benchmark
from stepladder.measure.contenders import Contender, tokenizer_contender
from stepladder.presets import photo
from stepladder.tokenizer import Tokenizer
from stepladder.tokenizer_config import LadderConfig, TokenizerConfig

LADDERS = (1, 2, 3, 4)
"""Scales, with one step on each."""
STEPS = (2, 4, 8)
"""Steps of the contrast, all at full resolution."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the measurement; returns its exit status."""
    parser = argparse.ArgumentParser(description="Measure ladders of 1 to 4 scales; print a report as JSON.")
    parser.add_argument("--size", type=int, default=256, help="side of the decoded images (default: 256)")
    parser.add_argument("--batch", type=int, default=1, help="images decoded at once (default: 1)")
    parser.add_argument("--repeats", type=int, default=5, help="times that each is decoded (default: 5)")
    parser.add_argument("--device", default="cpu", help="where to decode (default: cpu)")
    options = parser.parse_args(arguments)
    try:
        report = benchmark(
            contenders(photo()),
            sizes=[options.size],
            batch=options.batch,
            repeats=options.repeats,
            device=options.device,
        )
    except StepladderError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(report.as_dict(), indent=2, allow_nan=False))
    return 0


def contenders(config: TokenizerConfig) -> list[Contender]:
    """One step on each of K scales, then several steps at full resolution; all of the same network."""
    ladders = {stages: Tokenizer(replace(config, ladder=LadderConfig(num_stages=stages))).eval() for stages in LADDERS}
    climbs = [tokenizer_contender(f"K={stages}", tokenizer, 1) for stages, tokenizer in ladders.items()]
    return climbs + [tokenizer_contender("K=1", ladders[1], steps) for steps in STEPS]


if __name__ == "__main__":
    sys.exit(main())
