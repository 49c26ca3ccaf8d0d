"""A model with several networks for its stages, from one in which a single network serves them all.

    python recipes/networks.py MODEL OUT --networks '[{}, {"depth": 1, "coarse_depth": 1}]'

Sizes are those of `decoder.networks`, as JSON, by default those of the single network. Each network starts from its
weights. With fewer blocks it keeps the first of those before the grid of 1/8 and on it, and the last of those after it,
which the head is used to. `stepladder distill` trains the result with `student = "OUT"`.
"""

import argparse
import copy
import json
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from stepladder import Tokenizer
from stepladder.decoders import StageNetworkConfig
from stepladder.decoders.stage_network import StageNetwork


def main(arguments: Sequence[str] | None = None) -> None:
    """Builds the tokenizer and saves it."""
    parser = argparse.ArgumentParser(description="Several networks for the stages of a model.")
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("--networks", type=json.loads, required=True, help="their sizes, coarse first, as JSON")
    options = parser.parse_args(arguments)
    model = Tokenizer.from_pretrained(options.model)
    network = model.decoder.network
    largest = model.config.decoder.sizes()[0]
    networks = [replace(largest, **sizes) for sizes in options.networks]
    for sizes in networks:
        fits = sizes.depth <= largest.depth and sizes.coarse_depth <= largest.coarse_depth
        if not fits or replace(sizes, depth=largest.depth, coarse_depth=largest.coarse_depth) != largest:
            parser.error(
                f"--networks: {sizes} cannot start from {largest}. Pass depth up to {largest.depth}, coarse_depth up "
                f"to {largest.coarse_depth}, and no other size."
            )
    made = Tokenizer(replace(model.config, decoder=replace(model.config.decoder, networks=networks)))
    network.networks = nn.ModuleList(_with_fewer_blocks(network.networks[0], sizes) for sizes in networks)
    weights = model.state_dict()
    made.load_state_dict({name: weights[name] for name in made.state_dict()})
    made.save_pretrained(options.out)


def _with_fewer_blocks(network: StageNetwork, sizes: StageNetworkConfig) -> StageNetwork:
    """A copy of a network with the blocks that it keeps."""
    kept = copy.deepcopy(network)
    kept.before = kept.before[: sizes.depth]
    kept.coarse = kept.coarse[: sizes.coarse_depth]
    kept.after = kept.after[len(kept.after) - sizes.depth :]
    return kept


if __name__ == "__main__":
    main()
