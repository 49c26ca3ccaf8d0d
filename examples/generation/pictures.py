"""Drawn images as one picture: a row for each class, a block for each decoder, and training images.

The last block holds the training images that are nearest to the first image of each row.
"""

import math
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont

from examples.generation.model import Prior
from examples.generation.neighbours import TrainingImages
from examples.generation.sampling import decoder_seeds, draw
from examples.generation.scores import Decoder, check_decoders
from stepladder.images import grid, to_pil
from stepladder.sampling.guidance import GuidanceConfig

__all__ = ["sheet"]

_GAP, _BLOCK_GAP, _HEADING, _CAPTION = 4, 16, 28, 88
"""Pixels between images, between blocks, above them, and left of them."""
_FONT = 15


def sheet(
    prior: Prior,
    decoders: Sequence[Decoder],
    labels: Sequence[int],
    *,
    samples: int,
    seed: int,
    steps: int,
    guidance: GuidanceConfig,
    tile: int | None = None,
    training: TrainingImages | None = None,
    nearest: int = 2,
) -> Image.Image:
    """Draws `samples` latents of each class, and decodes them by each decoder, with the same seeds.

    Args:
        prior: In evaluation mode.
        decoders: From left to right.
        labels: Classes, from top to bottom; their names stand before the rows.
        samples: Images of a class, from left to right.
        seed: Of the first image; the others follow.
        steps: Of the prior.
        guidance: Of the prior.
        tile: Side of an image in the picture; None for its own.
        training: Where the nearest training images come from, to the first image of each row; None for none.
        nearest: How many of them.

    Raises:
        ConfigError: If a decoder belongs to another encoder, or the prior does not know a class.
    """
    check_decoders(prior, decoders)
    rows = [label for label in labels for _ in range(samples)]
    seeds, side = range(seed, seed + len(rows)), tile or prior.config.side
    latents = draw(prior, rows, seeds, steps=steps, guidance=guidance)
    blocks = [_captions([prior.config.name(label) for label in labels], side)]
    firsts = None
    for decoder in decoders:
        images = decoder.tokenizer.decode(latents, seeds=decoder_seeds(seeds), steps=decoder.steps)
        firsts = images[::samples] if firsts is None else firsts
        blocks.append(_block(images, samples, side, str(decoder)))
    if training is not None and firsts is not None:
        found = training.nearest(firsts, nearest)
        blocks.append(_block(found.images.flatten(0, 1), nearest, side, "nearest"))
    return _row(blocks)


def _block(images: torch.Tensor, columns: int, side: int, heading: str) -> Image.Image:
    """Images in rows, under a heading."""
    tiles = [to_pil(image).resize((side, side), Image.Resampling.LANCZOS) for image in images]
    body = grid(tiles, columns=columns, gap=_GAP)
    page = Image.new("RGB", (max(body.width, _width(heading)), body.height + _HEADING), "white")
    page.paste(body, (0, _HEADING))
    _write(page, page.width / 2, _HEADING / 2, heading, "mm")
    return page


def _row(blocks: Sequence[Image.Image]) -> Image.Image:
    """Blocks of one height, each as wide as it is."""
    page = Image.new("RGB", (sum(block.width + _BLOCK_GAP for block in blocks) - _BLOCK_GAP, blocks[0].height), "white")
    x = 0
    for block in blocks:
        page.paste(block, (x, 0))
        x += block.width + _BLOCK_GAP
    return page


def _captions(names: Sequence[str], side: int) -> Image.Image:
    """One for each row."""
    page = Image.new("RGB", (_CAPTION, _HEADING + len(names) * (side + _GAP) - _GAP), "white")
    for row, name in enumerate(names):
        _write(page, _CAPTION, _HEADING + row * (side + _GAP) + side / 2, name, "rm")
    return page


def _write(page: Image.Image, x: float, y: float, text: str, anchor: str) -> None:
    ImageDraw.Draw(page).text((x, y), text, fill="black", anchor=anchor, font=ImageFont.load_default(_FONT))


def _width(text: str) -> int:
    return math.ceil(ImageFont.load_default(_FONT).getlength(text))
