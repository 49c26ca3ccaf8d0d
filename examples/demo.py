"""Reconstructs photographs with the embedded model, and prints speed against quality.

    python examples/demo.py [--out build/demo]

The photographs ship with scikit-image and scikit-learn; nothing is downloaded. Two things are made: a table by the
protocol of `stepladder evaluate` (square, 256 pixels), and a comparison picture of squares cut from the photographs at
their full size. Where the folder `models` is there, so are what the embedded model was distilled from and what it is
compared with: its many-step teacher, one distilled full-resolution step, and the ordinary full-resolution decoder.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table

from stepladder import StepladderError, Tokenizer
from stepladder.data import open_source
from stepladder.demo.photographs import photographs
from stepladder.images import grid, save_png, to_pil, to_tensor
from stepladder.measure.evaluation import evaluate
from stepladder.memory import keep_freed_memory

SIDE = 256
MODELS = Path(__file__).resolve().parent.parent / "models"
OTHERS = {"photo-single": 1, "photo-teacher": 8, "photo-base": 8}
"""Models of that folder, and how many steps they take in each stage."""
CUTS = {
    "astronaut": (96, 0),
    "cat": (60, 20),
    "coffee": (180, 60),
    "rocket": (200, 130),
    "china": (40, 150),
    "flower": (200, 120),
}
"""Left and top of the square that the comparison picture shows."""


class Model(NamedTuple):
    """A tokenizer and how many steps it takes in each stage."""

    name: str
    tokenizer: Tokenizer
    steps: int

    def __str__(self) -> str:
        return f"{self.name}@{self.steps}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demo; returns its exit status."""
    parser = argparse.ArgumentParser(description="Reconstruct photographs; print speed and quality.")
    parser.add_argument("--out", type=Path, default=Path("build/demo"), help="folder for the pictures")
    out: Path = parser.parse_args(arguments).out
    try:
        run(models(), photographs(), out)
    except StepladderError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def models() -> list[Model]:
    """The embedded model, and the others if they are there."""
    others = [
        Model(name, Tokenizer.from_pretrained(MODELS / name), steps)
        for name, steps in OTHERS.items()
        if (MODELS / name).is_dir()
    ]
    return [Model("photo", Tokenizer.from_pretrained("photo"), 1), *others]


def run(models: Sequence[Model], photos: Mapping[str, Image.Image], out: Path) -> None:
    """Measures, prints the table, and writes the comparison picture."""
    started = time.monotonic()
    talk = Console(stderr=True)
    for name, photo in photos.items():
        save_png(photo, out / "photographs" / f"{name}.png", force=True)
    with talk.status(f"Decoding {len(photos)} photographs with {', '.join(map(str, models))} ..."):
        report = evaluate(models, open_source(out / "photographs"), size=SIDE, batch=1).as_dict()
    Console().print(table(report["rows"], title=f"{len(photos)} photographs at {SIDE} x {SIDE}, {report['device']}"))
    with talk.status("Drawing the comparison ..."):
        picture = out / "comparison.png"
        save_png(comparison(models, photos), picture, force=True)
    print(f"\nComparison, original and each model: {picture}")
    print(f"Done in {time.monotonic() - started:.0f} s.")


def table(rows: Sequence[Mapping[str, float]], *, title: str) -> Table:
    """Speed and quality; the last column compares the time with that of the slowest model."""
    slowest = max(row["seconds_per_image"] for row in rows)
    drawn = Table("model", title=title)
    for heading in ("PSNR, dB", "SSIM", "evaluations", "s per image", "faster"):
        drawn.add_column(heading, justify="right")
    for row in rows:
        drawn.add_row(
            f"{row['model']}@{row['steps_per_stage']}",
            f"{row['psnr_db']:.2f}",
            f"{row['ssim']:.3f}",
            f"{row['network_evaluations']}",
            f"{row['seconds_per_image']:.3f}",
            f"{slowest / row['seconds_per_image']:.1f} x",
        )
    return drawn


def comparison(models: Sequence[Model], photos: Mapping[str, Image.Image]) -> Image.Image:
    """A row for each photograph: the original, then each model, pixel for pixel."""
    cuts = [cut(photo, CUTS.get(name, (0, 0))) for name, photo in photos.items()]
    images = torch.stack([to_tensor(image) for image in cuts])
    columns = [cuts]
    for model in models:
        decoded = model.tokenizer.decode(model.tokenizer.encode(images), steps=model.steps)
        columns.append([to_pil(image) for image in decoded])
    body = grid([image for row in zip(*columns, strict=True) for image in row], columns=len(columns))
    return with_headings(body, ["original", *map(str, models)])


def cut(photo: Image.Image, corner: tuple[int, int]) -> Image.Image:
    """A square of SIDE pixels, moved inside the photograph."""
    left, top = min(corner[0], photo.width - SIDE), min(corner[1], photo.height - SIDE)
    return photo.crop((left, top, left + SIDE, top + SIDE))


def with_headings(body: Image.Image, headings: Sequence[str]) -> Image.Image:
    """The columns of a picture with a name above each."""
    height = 32
    page = Image.new("RGB", (body.width, body.height + height), "white")
    page.paste(body, (0, height))
    drawing, width = ImageDraw.Draw(page), body.width / len(headings)
    for i, heading in enumerate(headings):
        drawing.text(
            ((i + 0.5) * width, height / 2), heading, fill="black", anchor="mm", font=ImageFont.load_default(18)
        )
    return page


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
