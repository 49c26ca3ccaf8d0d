"""One image through a tokenizer and back, stage by stage, with the time of each part and the fidelity.

    image -> encode -> latent        latent -> stage 0 -> stage 1 -> ... -> image of the size of the original

Times exclude what the caller does between two stages.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from stepladder.images import to_pil, to_tensor
from stepladder.latents import value_bits
from stepladder.measure.metrics import SSIM_WINDOW, colour_shift, psnr, quantise, ssim
from stepladder.tokenizer import Tokenizer

__all__ = ["Fidelity", "StageImage", "WatchedDecode", "compare", "watch"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StageImage:
    """What a decode has at the end of a stage."""

    image: Image.Image
    """Its side is that of the stage."""
    downscale: int
    """Side of the original over its side."""
    seconds: float
    """Of this stage, with the copy from the device."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WatchedDecode:
    """An encoded image, and its decode, which goes on as far as `stages` is read."""

    latent_shape: tuple[int, ...]
    """Of one image, without the batch."""
    latent_bits: float
    """Of the latent as it is stored: 32 for each value, or log2 of the number of codes for each code."""
    encoding_seconds: float
    num_stages: int
    stages: Iterator[StageImage]
    """Coarse first; the last one has the size of the original."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fidelity:
    """How close an image is to its original, on 8-bit values in [0, 1]."""

    psnr_db: float | None
    """None where they are equal."""
    ssim: float | None
    """None where a side is below the window of SSIM."""
    colour_shift: float
    """Largest difference of the means of a channel."""


def watch(tokenizer: Tokenizer, image: Image.Image, *, seed: int = 0, steps: int | None = None) -> WatchedDecode:
    """Encodes an image, on the device of the tokenizer, and prepares its decode.

    Args:
        tokenizer: Does both.
        image: 8-bit RGB.
        seed: Of the decoder's noise.
        steps: Steps per stage; the tokenizer's own by default.

    Raises:
        ImageError: If the tokenizer does not take images of this size.
    """
    started = time.perf_counter()
    code = tokenizer.encode(to_tensor(image)[None].to(tokenizer.device))
    numbers = (code.latent if code.indices is None else code.indices)[0].cpu().numel()  # waits for the device

    def stages() -> Iterator[StageImage]:
        ends = tokenizer.decode_progressively(code, seeds=[seed], steps=steps)
        for stage in tokenizer.schedule.stages:
            begun = time.perf_counter()
            reached = to_pil(next(ends)[0].float())
            yield StageImage(image=reached, downscale=stage.downscale, seconds=time.perf_counter() - begun)

    return WatchedDecode(
        latent_shape=tuple(code.latent.shape[1:]),
        latent_bits=numbers * value_bits(tokenizer.codebook_size),
        encoding_seconds=time.perf_counter() - started,
        num_stages=tokenizer.schedule.num_stages,
        stages=stages(),
    )


def compare(image: Image.Image, original: Image.Image) -> Fidelity:
    """Measures an image against its original, of the same size; both 8-bit RGB."""
    pair = [quantise(to_tensor(each)[None]) for each in (image, original)]
    decibels = psnr(*pair).item()
    return Fidelity(
        psnr_db=decibels if math.isfinite(decibels) else None,
        ssim=ssim(*pair).item() if min(original.size) >= SSIM_WINDOW else None,
        colour_shift=colour_shift(*pair).item(),
    )
