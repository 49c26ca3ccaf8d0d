"""The same decode on every path: eager, fused, in half precision, compiled, exported, and beside it other decoders.

    python benchmarks/paths.py DATA [--model photo] [--export DIR ...] [--against kl --against tiny] [--compile]
                               [--size 256 ...] [--repeats 5] [--threads N]

All paths decode the latents of the same images with the same seeds, one image at a time, and take turns: all decode
once before any decodes again. Reported are medians, and what each path loses of PSNR against float32 in torch on the
images, at the first size. Exports are folders that `stepladder export` wrote; one of OpenVINO is measured in float32,
and in bfloat16 where the processor has it. Networks are compiled for each size. `make paths` does all of it, and
`benchmarks/record.py NAME --command paths` records it.
"""

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor

from stepladder import __version__
from stepladder.data import evaluation_images, open_source
from stepladder.devices import has_fast_bfloat16
from stepladder.errors import StepladderError
from stepladder.integrations.diffusers.contenders import find_decoders
from stepladder.measure.contenders import Setting
from stepladder.measure.profiling import describe_environment
from stepladder.runtime import load
from stepladder.tokenizer import Tokenizer

CPU = torch.device("cpu")
IMAGES = 8
"""Images on which PSNR is taken."""

Decode = Callable[[Tensor, int], Tensor | None]
"""From a latent (1, ...) and the side of the image to the image; None of decoders of other latents."""


@dataclass
class Way:
    """One way to decode."""

    name: str
    decode: Decode
    seconds: list[float] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the measurement; returns its exit status."""
    parser = argparse.ArgumentParser(description="Measure the paths of a decode; print a report as JSON.")
    parser.add_argument("data", help="as `stepladder evaluate` takes it")
    parser.add_argument("--model", default="photo", help="name or folder (default: photo)")
    parser.add_argument("--export", type=Path, action="append", default=[], metavar="DIR", help="may be repeated")
    parser.add_argument("--against", action="append", default=[], metavar="NAME", help="kl, tiny; may be repeated")
    parser.add_argument("--compile", action="store_true", help="also compiled")
    parser.add_argument("--size", type=int, action="append", help="side of the images (default: 256)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(arguments)
    try:
        torch.set_num_threads(options.threads)
        print(json.dumps(measure(options), indent=2, allow_nan=False))
    except StepladderError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


@torch.inference_mode()
def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The report."""
    tokenizer = Tokenizer.from_pretrained(options.model)
    source = open_source(options.data)
    sizes = options.size or [256]
    rows: list[dict[str, Any]] = []
    for size in sizes:
        paths = [
            *of_tokenizer(tokenizer, compiled=options.compile),
            *of_exports(options),
            *of_others(options, size),
        ]
        originals = [image[None] for _, image in evaluation_images(source, size=size, limit=IMAGES)]
        latents = [tokenizer.encode(image).latent for image in originals]
        for path in paths:
            path.decode(latents[0], size)
        for _ in range(options.repeats):
            for path in paths:
                started = time.perf_counter()
                path.decode(latents[0], size)
                path.seconds.append(time.perf_counter() - started)
        quality = [_quality(path, latents, originals, size) if size == sizes[0] else None for path in paths]
        rows += [_row(path, size, quality[0], found) for path, found in zip(paths, quality, strict=True)]
    return {
        "device": "cpu",
        "hardware": describe_environment(CPU)["hardware"],
        "threads": options.threads,
        "version": __version__,
        "dtype": "float32 where no other is named",
        "compiled": False,
        "batch": 1,
        "repeats": options.repeats,
        "seed": 0,
        "images": len(originals),
        "peak_gflops": None,
        "rows": rows,
    }


def of_tokenizer(tokenizer: Tokenizer, *, compiled: bool) -> Iterator[Way]:
    """In torch; the first is what the others are compared with."""
    plain = copy.deepcopy(tokenizer).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    fused = tokenizer.fuse()
    half = tokenizer.fuse().to_precision(torch.bfloat16)
    yield Way("torch", _eager(tokenizer))
    yield Way("torch, not channels last", _eager(plain))
    yield Way("torch, fused", _eager(fused))
    yield Way("torch, fused, bfloat16", _eager(half))
    if compiled:
        for name, source in (("torch, fused, compiled", fused), ("torch, fused, compiled, bfloat16", half)):
            yield Way(name, _eager(copy.deepcopy(source).compile_decoder(any_size=False)))


def of_exports(options: argparse.Namespace) -> Iterator[Way]:
    """Without torch."""
    for folder in options.export:
        manifest = load(folder).manifest
        if manifest.backend == "onnx":
            yield Way("ONNX, onnxruntime", _exported(folder, options.threads, "float32"))
        elif manifest.precision == "int8":
            yield Way("OpenVINO, int8", _exported(folder, options.threads, "float32"))
        else:
            yield Way("OpenVINO", _exported(folder, options.threads, "float32"))
            if has_fast_bfloat16(CPU):
                yield Way("OpenVINO, bfloat16", _exported(folder, options.threads, "bfloat16"))


def of_others(options: argparse.Namespace, size: int) -> Iterator[Way]:
    """Decoders of diffusers, with fresh weights."""
    for contender in find_decoders(options.against):
        setting = Setting(size=size, batch=1, dtype=torch.float32, compile=False, device=CPU, seed=0)
        yield Way(contender.name, _foreign(contender.prepare(setting)))


def _eager(tokenizer: Tokenizer) -> Decode:
    return lambda latent, size: tokenizer.decode(latent, seeds=[0], steps=1, size=(size, size))


def _exported(folder: Path, threads: int, precision: str) -> Decode:
    model = load(folder, threads=threads, precision=precision)
    return lambda latent, size: torch.from_numpy(model.decode(latent.numpy(), seeds=[0], size=(size, size)))


def _foreign(decode: Callable[[], Any]) -> Decode:
    def run(_latent: Tensor, _size: int) -> None:
        for _ in decode():
            pass

    return run


def _quality(path: Way, latents: Sequence[Tensor], originals: Sequence[Tensor], size: int) -> float | None:
    """Mean PSNR, on [-1, 1]."""
    values = []
    for latent, original in zip(latents, originals, strict=True):
        image = path.decode(latent, size)
        if image is None:
            return None
        values.append(-10 * torch.log10((image - original).square().mean() / 4).item())
    return fmean(values)


def _row(path: Way, size: int, reference: float | None, quality: float | None) -> dict[str, Any]:
    return {
        "path": path.name,
        "size": size,
        "seconds_per_image": median(path.seconds),
        "seconds_min": min(path.seconds),
        "seconds_max": max(path.seconds),
        "psnr_db": quality,
        "psnr_change_db": None if quality is None or reference is None else quality - reference,
    }


if __name__ == "__main__":
    sys.exit(main())
