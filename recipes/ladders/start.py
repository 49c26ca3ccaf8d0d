"""A tokenizer with the encoder and the initial estimate of another one, and stages of fresh weights on K scales.

    python recipes/ladders/start.py MODEL K OUT --ends E0 ... 0 --residuals R0 ... [--networks '[{}, {"depth": 1}]']

The comparison of ladders starts each of them so: what differs is the number of scales, and the networks of the stages.
"""

import argparse
import json
from dataclasses import replace

import torch

from stepladder import Tokenizer
from stepladder.decoders import StageNetworkConfig


def main() -> None:
    """Builds the tokenizer and saves it."""
    parser = argparse.ArgumentParser(
        description="Fresh stages on K scales, beside the encoder and estimate of a model."
    )
    parser.add_argument("model")
    parser.add_argument("stages", type=int, metavar="K")
    parser.add_argument("out")
    parser.add_argument("--ends", type=float, nargs="+", required=True)
    parser.add_argument("--residuals", type=float, nargs="+", required=True)
    parser.add_argument("--networks", type=json.loads, help="sizes of several networks, as JSON; default: one")
    options = parser.parse_args()
    model = Tokenizer.from_pretrained(options.model)
    ends, residuals = tuple(options.ends), tuple(options.residuals)
    ladder = replace(model.config.ladder, num_stages=options.stages, ends=ends, residuals=residuals)
    torch.manual_seed(0)
    networks = options.networks and [StageNetworkConfig(**sizes) for sizes in options.networks]
    fresh = Tokenizer(replace(model.config, ladder=ladder, decoder=replace(model.config.decoder, networks=networks)))
    fresh.encoder.load_state_dict(model.encoder.state_dict())
    fresh.bottleneck.load_state_dict(model.bottleneck.state_dict())
    fresh.decoder.network.reader.load_state_dict(model.decoder.network.reader.state_dict())
    fresh.save_pretrained(options.out)


if __name__ == "__main__":
    main()
