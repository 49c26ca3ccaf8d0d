"""Makes the picture of the README: the same crops of photographs from several models, magnified.

    make demo                                                                     writes the photographs
    python benchmarks/crops.py build/demo/photographs docs/images/crops.png [--layout benchmarks/crops.toml] [--force]

The first argument is data as `stepladder evaluate` takes it, and the picture shows what that measures: images cut to a
square, image i decoded with the seed i. A row for each crop, a column for the original and for each model. Which crops
of which images, and which models, stands in a TOML file; `Layout` and `Crop` say what it holds.
"""

import argparse
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from stepladder.configs import structure
from stepladder.data import ImageSource, evaluation_images, open_source
from stepladder.errors import ConfigError, DataError, StepladderError
from stepladder.images import grid, save_png, to_pil
from stepladder.models import parse_model_spec
from stepladder.tokenizer import Tokenizer

LAYOUT = Path(__file__).with_name("crops.toml")
GAP, HEADING, MARGIN = 8, 44, 28
"""Pixels between crops, above them for the names of models, and left of them for their own."""


@dataclass(frozen=True, kw_only=True)
class Crop:
    """A part of an image."""

    name: str
    """What the picture calls it."""
    image: str
    """Key of the image in the data, or its place, counted from 0."""
    left: int
    top: int


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What the picture shows."""

    crops: list[Crop]
    """From top to bottom."""
    models: list[str]
    """MODEL@N, from left to right; the original stands before them."""
    width: int
    """Of a crop, in pixels of the image."""
    height: int
    scale: int = 3
    """Pixels of the picture for each pixel of an image, along a side."""
    size: int = 256
    """Side that images are cut to."""

    def __post_init__(self) -> None:
        if not self.crops or not self.models:
            raise ConfigError("No crop or no model to show. At least one of each is needed. Name them in the layout.")
        if min(self.width, self.height, self.scale) < 1:
            raise ConfigError(
                f"Crops of {self.width} x {self.height}, {self.scale} times as large, are empty. Each number must be "
                "at least 1. Change the layout."
            )
        for crop in self.crops:
            if not (0 <= crop.left <= self.size - self.width and 0 <= crop.top <= self.size - self.height):
                raise ConfigError(
                    f"Crop '{crop.name}' at {crop.left}, {crop.top} leaves the image. It is {self.width} x "
                    f"{self.height} of {self.size} x {self.size}. Move it in the layout."
                )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(description="Make a picture of crops from several models.")
    parser.add_argument("data", help="a folder of images, .tar shards, or what else `stepladder evaluate` takes")
    parser.add_argument("out", type=Path, help="the picture, a PNG")
    parser.add_argument("--layout", type=Path, default=LAYOUT, help="what it shows (default: benchmarks/crops.toml)")
    parser.add_argument("--force", action="store_true", help="replace a picture that is there")
    options = parser.parse_args(arguments)
    try:
        drawn = picture(read_layout(options.layout), open_source(options.data))
        save_png(drawn, options.out, force=options.force)
    except StepladderError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.out}: {drawn.width} x {drawn.height}, {options.out.stat().st_size / 1024:.0f} KiB")
    return 0


def read_layout(path: Path) -> Layout:
    """Reads a TOML file.

    Raises:
        ConfigError: If it is none, or what it says does not fit.
    """
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"Cannot read layout {path}: {error}. It is a TOML file. Check it.") from error
    return structure(data, Layout, where=path.name)


def picture(layout: Layout, source: ImageSource) -> Image.Image:
    """A row for each crop, a column for the original and for each model, and their names."""
    originals = find(layout, source)
    places = sorted({place for place, _ in originals.values()})
    batch = torch.stack([next(image for at, image in originals.values() if at == place) for place in places])
    columns, headings = [batch], ["original"]
    for text in layout.models:
        spec = parse_model_spec(text)
        tokenizer = Tokenizer.from_pretrained(spec.name)
        columns.append(tokenizer.decode(tokenizer.encode(batch), seeds=places, steps=spec.steps))
        steps = tokenizer.steps_per_stage if spec.steps is None else spec.steps
        evaluations = steps * tokenizer.schedule.num_stages
        headings.append(f"{Path(spec.name).name}@{steps}\n{evaluations} evaluation{'s' * (evaluations > 1)}")
    cells = [
        cut(column[places.index(originals[crop.image][0])], crop, layout) for crop in layout.crops for column in columns
    ]
    return with_names(grid(cells, columns=len(columns), gap=GAP), headings, [crop.name for crop in layout.crops])


def find(layout: Layout, source: ImageSource) -> Mapping[str, tuple[int, Float[Tensor, "3 s s"]]]:
    """Place and pixels of the images that a layout names, by the name that it gives them.

    Raises:
        DataError: If the data lacks one.
    """
    wanted = {crop.image for crop in layout.crops}
    found: dict[str, tuple[int, Tensor]] = {}
    for place, (key, image) in enumerate(evaluation_images(source, size=layout.size)):
        found |= dict.fromkeys(wanted & {key, str(place)}, (place, image))
        if len(found) == len(wanted):
            break
    if missing := sorted(wanted - found.keys()):
        raise DataError(f"No image '{missing[0]}' in {source.name}. A key or a place is accepted. Change the layout.")
    return found


def cut(image: Float[Tensor, "3 s s"], crop: Crop, layout: Layout) -> Image.Image:
    """A crop, magnified so that its pixels show."""
    box = (crop.left, crop.top, crop.left + layout.width, crop.top + layout.height)
    size = (layout.width * layout.scale, layout.height * layout.scale)
    return to_pil(image).crop(box).resize(size, Image.Resampling.NEAREST)


def with_names(body: Image.Image, headings: Sequence[str], names: Sequence[str]) -> Image.Image:
    """Cells in a grid with a heading above each column and a name, upwards, left of each row."""
    page = Image.new("RGB", (body.width + MARGIN, body.height + HEADING), "white")
    page.paste(body, (MARGIN, HEADING))
    width, height = (body.width + GAP) / len(headings), (body.height + GAP) / len(names)
    font = ImageFont.load_default(16)
    drawing = ImageDraw.Draw(page)
    for i, heading in enumerate(headings):
        centre = (MARGIN + (i + 0.5) * width - GAP / 2, HEADING / 2)
        drawing.multiline_text(centre, heading, fill="black", anchor="mm", align="center", font=font)
    for i, name in enumerate(names):
        strip = Image.new("RGB", (round(height), MARGIN), "white")
        centre = ((height - GAP) / 2, MARGIN / 2)
        ImageDraw.Draw(strip).text(centre, name, fill="black", anchor="mm", font=font)
        page.paste(strip.rotate(90, expand=True), (0, HEADING + round(i * height) - GAP))
    return page


if __name__ == "__main__":
    sys.exit(main())
