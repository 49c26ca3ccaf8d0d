"""The decoder that an encoder came with, beside decoders of Stepladder for its latents, by the protocol of `evaluate`.

    python benchmarks/peer.py DATA DECODER.onnx ENCODER MODEL@N [MODEL@N ...] [--size 256] [--limit N] [--seed 0]

DECODER.onnx maps raw latents to images in [0, 1]; onnxruntime runs it with as many threads as torch has. ENCODER is the
frozen encoder of the models, as `--encoder` takes it. All rows decode the same latents. The report of `stepladder
evaluate` is printed as JSON, the decoder in its first row, with the parameters of its file and the operations of its
convolutions. `benchmarks/record.py NAME --command peer --data-name TEXT -- ...` records it.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor

from stepladder.data import open_source
from stepladder.encoders import FrozenEncoder
from stepladder.errors import ConfigError, StepladderError
from stepladder.measure.evaluation import evaluate
from stepladder.models import ModelSpec, parse_model_spec
from stepladder.pipelines import foreign_latents
from stepladder.tokenizer import Encoding, Tokenizer
from stepladder.tokenizer_config import LadderConfig


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the measurement; returns its exit status."""
    parser = argparse.ArgumentParser(description="Measure a decoder beside models of its latents; print JSON.")
    parser.add_argument("data", help="images, as `stepladder evaluate` takes them")
    parser.add_argument("decoder", type=Path, help="an ONNX file: raw latents to images in [0, 1]")
    parser.add_argument("encoder", help="the frozen encoder of the models")
    parser.add_argument("models", nargs="+", help="MODEL@N, which hold a decoder alone")
    parser.add_argument("--size", type=int, default=256, help="side of the images (default: 256)")
    parser.add_argument("--limit", type=int, help="images at most")
    parser.add_argument("--seed", type=int, default=0, help="of the models' noise (default: 0)")
    parser.add_argument("--batch", type=int, default=8, help="images decoded at once (default: 8)")
    options = parser.parse_args(arguments)
    try:
        specs = [parse_model_spec(model) for model in options.models]
        loaded = [(spec.name, load(spec, options.encoder), spec.steps) for spec in specs]
        peer = Peer(loaded[0][1], options.decoder)
        report = evaluate(
            [(options.decoder.stem, peer, 1), *loaded],
            open_source(options.data),
            size=options.size,
            limit=options.limit,
            seed=options.seed,
            batch=options.batch,
        ).as_dict()
    except StepladderError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    report["rows"][0] |= described(options.decoder, peer.layout.shape((options.size, options.size)))
    print(json.dumps(report, indent=2, allow_nan=False))
    return 0


def load(spec: ModelSpec, encoder: str) -> Tokenizer:
    """A model with its encoder open."""
    tokenizer = Tokenizer.from_pretrained(spec.name)
    if not isinstance(tokenizer.encoder, FrozenEncoder):
        raise ConfigError(f"Model '{spec.name}' has its own encoder. Models of the latents of {encoder} are compared.")
    tokenizer.encoder.open(encoder)
    return tokenizer


class Peer(Tokenizer):
    """A tokenizer whose latents another decoder decodes: encoder and scale are those of a model."""

    def __init__(self, model: Tokenizer, decoder: Path) -> None:
        super().__init__(replace(model.config, ladder=LadderConfig(num_stages=1)))
        self.encoder, self.bottleneck = model.encoder, model.bottleneck
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = onnxruntime.InferenceSession(str(decoder), options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def decode_progressively(self, code: Encoding | Tensor, **_: Any) -> Iterator[Tensor]:
        """One image in [-1, 1]; takes no noise."""
        assert isinstance(code, Encoding)
        raw = foreign_latents(self, code.latent).numpy()
        images = torch.from_numpy(self._session.run(None, {self._input: raw})[0])
        yield (images.clamp(0, 1) * 2 - 1)[:, :, : code.size[0], : code.size[1]]


def described(decoder: Path, latent: Sequence[int]) -> dict[str, Any]:
    """What a row says of the file, which torch cannot count: one step, its parameters, and operations for an image."""
    model = onnx.load(str(decoder))
    parameters = sum(math.prod(value.dims) for value in model.graph.initializer)
    dims = model.graph.input[0].type.tensor_type.shape.dim
    for dim, length in zip(dims, (1, *latent), strict=True):
        dim.dim_value = length
    flop = sum(_convolutions(onnx.shape_inference.infer_shapes(model).graph))
    cost = {"parameters": parameters, "gflop_per_image": flop / 1e9}
    return {"stages": 1, "network_evaluations": 1, "stage_gains": None, **cost}


def _convolutions(graph: Any) -> Iterator[float]:
    """Two operations for each multiplication of each convolution, as torch counts."""
    shapes = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in graph.value_info}
    shapes |= {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in graph.output}
    weights = {value.name: list(value.dims) for value in graph.initializer}
    for node in graph.node:
        if node.op_type == "Conv":
            _, channels, height, width = shapes[node.output[0]]
            yield 2.0 * channels * height * width * math.prod(weights[node.input[1]][1:])


if __name__ == "__main__":
    sys.exit(main())
