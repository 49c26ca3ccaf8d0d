"""One image through a tokenizer and back, with its cost and fidelity.

    image -> encode -> latent -> decode -> image        PSNR = -10 log10 mean((x - y)^2), on 8-bit values in [0, 1]

The bits of the latent are those of plain storage: 32 per value, or log2 of the number of codes per code of a quantised
one. Nothing compresses it further.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from stepladder.images import to_pil, to_tensor
from stepladder.latents import value_bits
from stepladder.measure.metrics import psnr, quantise
from stepladder.sampling.guidance import GuidanceConfig
from stepladder.sampling.randomness import NoiseKind
from stepladder.sampling.steps import EULER, SamplerConfig
from stepladder.tokenizer import Tokenizer

__all__ = ["Reconstruction", "reconstruct", "reconstruct_together"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reconstruction:
    """An image that went through a tokenizer."""

    image: Image.Image
    """Of the size of the original."""
    stages: tuple[Image.Image, ...]
    """Images of the stages before the last, coarse first; none for K = 1."""
    latent_shape: tuple[int, ...]
    """Of one image, without the batch."""
    latent_bits: float
    """Of the latent as it is stored."""
    psnr_db: float | None
    """Against the original; None where they are equal."""
    seconds: float
    """From 8-bit pixels to 8-bit pixels: encoding, decoding, and the copies to and from the device."""

    @property
    def bits_per_pixel(self) -> float:
        """Bits of the latent for each pixel of the image."""
        return self.latent_bits / (self.image.width * self.image.height)


def reconstruct(
    tokenizer: Tokenizer,
    image: Image.Image,
    *,
    seed: int | None = None,
    steps: int | None = None,
    tile: int | None = None,
    guidance: GuidanceConfig | float | None = None,
    sampler: SamplerConfig = EULER,
    noise: NoiseKind = "drawn",
) -> Reconstruction:
    """Encodes and decodes one image, on the device of the tokenizer.

    Args:
        tokenizer: Does both.
        image: 8-bit RGB.
        seed: Of the decoder's noise: the same image and seed give the same reconstruction. 0 by default, and none for
            zero noise.
        steps: Steps per stage; the tokenizer's own by default.
        tile: Side of the tiles of large stages, 0 for none; the tokenizer's own by default.
        guidance: On the latent; a number changes the scale alone. The tokenizer's own by default.
        sampler: How steps are taken.
        noise: Whether the decode draws any.

    Raises:
        ImageError: If the tokenizer does not take images of this size.
        ConfigError: If it takes no such tiles, guidance or sampler.
    """
    (found,) = reconstruct_together(
        tokenizer,
        [image],
        seeds=None if seed is None else [seed],
        steps=steps,
        tile=tile,
        guidance=guidance,
        sampler=sampler,
        noise=noise,
    )
    return found


def reconstruct_together(
    tokenizer: Tokenizer,
    images: Sequence[Image.Image],
    *,
    seeds: Sequence[int] | None,
    steps: int | None = None,
    tile: int | None = None,
    guidance: GuidanceConfig | float | None = None,
    sampler: SamplerConfig = EULER,
    noise: NoiseKind = "drawn",
) -> list[Reconstruction]:
    """The same for images of one size in one batch, with a seed for each; each takes its share of the time."""
    started = time.perf_counter()
    code = tokenizer.encode(torch.stack([to_tensor(image) for image in images]).to(tokenizer.device), tile=tile)
    ends = tokenizer.decode_progressively(
        code, seeds=seeds, steps=steps, tile=tile, guidance=guidance, sampler=sampler, noise=noise
    )
    *stages, found = map(_pictures, ends)  # one after the other: floats of a large image take hundreds of megabytes
    seconds = (time.perf_counter() - started) / len(images)
    numbers = (code.latent if code.indices is None else code.indices)[0].numel()
    return [
        Reconstruction(
            image=image,
            stages=tuple(stage[place] for stage in stages),
            latent_shape=tuple(code.latent.shape[1:]),
            latent_bits=numbers * value_bits(tokenizer.codebook_size),
            psnr_db=_psnr(image, original),
            seconds=seconds,
        )
        for place, (image, original) in enumerate(zip(found, images, strict=True))
    ]


def _pictures(images: Float[Tensor, "b 3 h w"]) -> list[Image.Image]:
    return [to_pil(image) for image in images.cpu()]


def _psnr(image: Image.Image, original: Image.Image) -> float | None:
    value = float(psnr(*(quantise(to_tensor(each)[None]) for each in (image, original))))
    return value if math.isfinite(value) else None
