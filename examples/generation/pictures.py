"""Drawn images as one picture: a block for each decoder, side by side; a row for each class, magnified."""

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont

from examples.generation.model import Prior
from examples.generation.sampling import decoder_seeds, draw
from examples.generation.scores import Decoder, check_decoders
from stepladder.images import grid, side_by_side, to_pil
from stepladder.sampling.guidance import GuidanceConfig

__all__ = ["sheet"]

_GAP, _BLOCK_GAP, _HEADING = 4, 24, 32
"""Pixels between images, between blocks, and above them."""


def sheet(
    prior: Prior,
    decoders: Sequence[Decoder],
    labels: Sequence[int],
    *,
    samples: int,
    seed: int,
    steps: int,
    guidance: GuidanceConfig,
    scale: int = 2,
) -> Image.Image:
    """Draws `samples` latents of each class, and decodes them by each decoder, with the same seeds.

    Args:
        prior: In evaluation mode.
        decoders: From left to right.
        labels: Classes, from top to bottom.
        samples: Images of a class, from left to right.
        seed: Of the first image; the others follow.
        steps: Of the prior.
        guidance: Of the prior.
        scale: Pixels of the picture for each pixel of an image, along a side.

    Raises:
        ConfigError: If a decoder belongs to another encoder, or the prior does not know a class.
    """
    check_decoders(prior, decoders)
    rows = [label for label in labels for _ in range(samples)]
    seeds = range(seed, seed + len(rows))
    latents = draw(prior, rows, seeds, steps=steps, guidance=guidance)
    blocks = []
    for decoder in decoders:
        images = decoder.tokenizer.decode(latents, seeds=decoder_seeds(seeds), steps=decoder.steps)
        tiles = [_magnified(image, scale) for image in images]
        blocks.append(_headed(grid(tiles, columns=samples, gap=_GAP), str(decoder)))
    return side_by_side(blocks, gap=_BLOCK_GAP)


def _magnified(image: torch.Tensor, scale: int) -> Image.Image:
    tile = to_pil(image)
    return tile.resize((tile.width * scale, tile.height * scale), Image.Resampling.NEAREST)


def _headed(body: Image.Image, heading: str) -> Image.Image:
    page = Image.new("RGB", (body.width, body.height + _HEADING), "white")
    page.paste(body, (0, _HEADING))
    drawing, font = ImageDraw.Draw(page), ImageFont.load_default(16)
    drawing.text((body.width / 2, _HEADING / 2), heading, fill="black", anchor="mm", font=font)
    return page
