"""A model with several networks for its stages, from one in which a single network serves them all.

    python recipes/networks.py MODEL OUT --networks '[{}, {"depth": 1, "coarse_depth": 1}]'

Sizes are those of `decoder.networks`, as JSON, by default those of the single network. Each network starts from its
weights; with fewer blocks it keeps the first of them. `stepladder distill` trains the result with `student = "OUT"`.
"""

import argparse
import json
from dataclasses import replace

from stepladder import Tokenizer
from stepladder.decoders import StageNetworkConfig


def main() -> None:
    """Builds the tokenizer and saves it."""
    parser = argparse.ArgumentParser(description="Several networks for the stages of a model.")
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("--networks", type=json.loads, required=True, help="their sizes, coarse first, as JSON")
    options = parser.parse_args()
    model = Tokenizer.from_pretrained(options.model)
    single = vars(model.config.decoder.sizes()[0])
    networks = [StageNetworkConfig(**{**single, **sizes}) for sizes in options.networks]
    made = Tokenizer(replace(model.config, decoder=replace(model.config.decoder, networks=networks)))
    weights = model.state_dict()
    made.load_state_dict({name: weights[_in_single(name)] for name in made.state_dict()})
    made.save_pretrained(options.out)


def _in_single(name: str) -> str:
    """The name of a weight in the single network."""
    before, networks, after = name.partition("network.networks.")
    return f"{before}{networks}0.{after.partition('.')[2]}" if networks else name


if __name__ == "__main__":
    main()
