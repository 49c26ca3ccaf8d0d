"""Pictures that are looked at: where an image differs from its original, and coarse stages as large as the last."""

import base64
import io
from pathlib import Path

from PIL import Image, ImageChops

__all__ = ["ERROR_LIMIT", "enlarged", "error_map", "error_scale", "inline", "middle", "write_png"]

ERROR_LIMIT = 32
"""Differences of 8-bit values from which on an error map shows its brightest colour."""

_ANCHORS = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))
"""Colours from no error to the limit, evenly spaced: five of those of matplotlib's map inferno."""


def error_map(image: Image.Image, original: Image.Image) -> Image.Image:
    """The difference of two RGB images of one size, its mean over the channels in colours."""
    difference = ImageChops.difference(image, original).convert("L", matrix=(1 / 3, 1 / 3, 1 / 3, 0))
    return _coloured(difference.point(lambda value: min(255, round(value * 255 / ERROR_LIMIT))))


def error_scale(width: int = 256, height: int = 8) -> Image.Image:
    """The colours of an error map from left, no difference, to right, the limit."""
    return _coloured(Image.linear_gradient("L").rotate(90).resize((width, height)))


def enlarged(stage: Image.Image, factor: int, size: tuple[int, int]) -> Image.Image:
    """The image of a stage as large as the original, each of its pixels a square."""
    whole = stage.resize((stage.width * factor, stage.height * factor), Image.Resampling.NEAREST)
    return whole.crop((0, 0, *size))


def middle(image: Image.Image, share: float) -> Image.Image:
    """The middle of an image, a share of each side."""
    width, height = (max(1, round(side * share)) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def inline(image: Image.Image, *, side: int) -> str:
    """An image as a data address, for a caption or a strip: of at most `side` pixels, a smaller one in squares."""
    factor = max(1, side // max(image.size))
    small = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def write_png(image: Image.Image, path: Path) -> Path:
    """Writes a PNG quickly rather than small, and returns its path."""
    path.parent.mkdir(parents=True)
    image.save(path, "PNG", compress_level=1)
    return path


def _coloured(grey: Image.Image) -> Image.Image:
    grey.putpalette([round(value) for level in range(256) for value in _colour(level / 255)])
    return grey.convert("RGB")


def _colour(share: float) -> list[float]:
    place = share * (len(_ANCHORS) - 1)
    left = min(int(place), len(_ANCHORS) - 2)
    return [a + (b - a) * (place - left) for a, b in zip(_ANCHORS[left], _ANCHORS[left + 1], strict=True)]
