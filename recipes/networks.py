"""A model with several networks for its stages, from one in which a single network serves them all.

    python recipes/networks.py MODEL OUT --networks '[{}, {"depth": 1, "coarse_depth": 1}]'

Sizes are those of `decoder.networks`, as JSON, by default those of the single network. Each network starts from its
weights. With fewer blocks it keeps the first of those before the grid of 1/8 and on it, and the last of those after it,
which the head is used to. `stepladder distill` trains the result with `student = "OUT"`.
"""

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import replace

from stepladder import Tokenizer


def main(arguments: Sequence[str] | None = None) -> None:
    """Builds the tokenizer and saves it."""
    parser = argparse.ArgumentParser(description="Several networks for the stages of a model.")
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("--networks", type=json.loads, required=True, help="their sizes, coarse first, as JSON")
    options = parser.parse_args(arguments)
    model = Tokenizer.from_pretrained(options.model)
    single = model.config.decoder.sizes()[0]
    networks = [replace(single, **sizes) for sizes in options.networks]
    made = Tokenizer(replace(model.config, decoder=replace(model.config.decoder, networks=networks)))
    weights = model.state_dict()
    dropped = [single.depth - sizes.depth for sizes in networks]
    made.load_state_dict({name: weights[_in_single(name, dropped)] for name in made.state_dict()})
    made.save_pretrained(options.out)


def _in_single(name: str, dropped: list[int]) -> str:
    """The name of a weight in the single network; of its last blocks, each network has dropped the first."""
    before, networks, within = name.partition("network.networks.")
    if not networks:
        return name
    number, _, weight = within.partition(".")
    block = re.match(r"after\.(\d+)", weight)
    if block:
        weight = f"after.{int(block[1]) + dropped[int(number)]}{weight[block.end() :]}"
    return f"{before}{networks}0.{weight}"


if __name__ == "__main__":
    main()
