"""Draws the pictures of the concepts page with the library's own functions.

docs/images/ladder.png          a photograph on its way up a ladder of three stages, at the sizes of the scales
docs/images/noise-levels.png    the noise level over a whole decode, for one to four stages
docs/images/jump.png            noise before and after a jump, and its covariance within blocks of 2 x 2 pixels
docs/images/one-step.png        one step at full resolution, one step per scale, and many: examples/toy.py

python docs/figures.py            draws them
python docs/figures.py --check    changes nothing; exit 1 and one line where a picture differs from what is drawn now
"""

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib.style
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch
from PIL import Image
from torch import Tensor

from stepladder import StageSchedule
from stepladder.demo.photographs import photographs
from stepladder.files import write_atomically
from stepladder.images import to_pil, to_tensor
from stepladder.sampling.path import path
from stepladder.sampling.randomness import generator, generators, normal
from stepladder.sampling.scales import down, jump, up

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, Python looks beside it only

from benchmarks.plots import FULL, GREY, IMAGES, LADDER, STYLE
from examples import demo, toy

TOLERANCE = 0.05
"""Mean difference, of 255, up to which two pictures are the same: processors round differently."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(description="Draw the pictures of the concepts page.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a picture is out of date")
    check = parser.parse_args(arguments).check
    failed = False
    for name, draw in FIGURES.items():
        place, drawn = IMAGES / f"{name}.png", _png(draw)
        if place.is_file() and _same(place.read_bytes(), drawn):
            continue
        if check:
            print(f"error: docs/images/{name}.png is out of date. Run: make pages", file=sys.stderr)
            failed = True
        else:
            write_atomically(place, lambda path, drawn=drawn: path.write_bytes(drawn), force=True)  # type: ignore[misc]
            print(f"docs/images/{name}.png: drawn")
    return 1 if failed else 0


def ladder() -> Figure:
    """A photograph at the start and at the end of each of three stages."""
    left, top = demo.CUTS["cat"]
    photo = photographs()["cat"].crop((left, top, left + demo.SIDE, top + demo.SIDE))
    image, schedule = down(to_tensor(photo)[None], 2), StageSchedule.uniform(3)
    sides = [image.shape[-1] // stage.downscale for stage in schedule.stages]
    gap, way, floor = 5, 30, 18  # between two pictures, between two stages, under a picture: all in pixels
    room, height = sum(2 * part + gap for part in sides) + 2 * way + 2 * gap, sides[-1] + 36
    figure = _figure(9.6, 9.6 * height / room)
    x = float(gap)
    for stage, part in zip(schedule.stages, sides, strict=True):
        clean = down(image, stage.downscale)
        noise = normal(clean.shape, generator(stage.index))
        for place, (u, level) in enumerate([(1.0, stage.t_start), (0.0, stage.t_end)]):
            corner = ((x + place * (part + gap)) / room, floor / height)
            axes = figure.add_axes((*corner, part / room, part / height))
            _show(axes, path(clean, noise, torch.tensor([u]), stage).x)
            axes.set_xlabel(f"noise {level:.2f}", fontsize=8, labelpad=3)
        title = f"stage {stage.index}: side {part}"
        figure.text((x + part + gap / 2) / room, (part + floor + 4) / height, title, ha="center", fontsize=9)
        x += 2 * part + gap + way
        if stage.t_end > 0:
            y, begin, end = (floor + part / 2) / height, (x - way + 3) / room, (x - 3) / room
            arrow = FancyArrowPatch(
                (begin, y), (end, y), transform=figure.transFigure, arrowstyle="-|>", mutation_scale=12, color=LADDER
            )
            figure.add_artist(arrow)
            figure.text((begin + end) / 2, y + 0.02, "jump", ha="center", va="bottom", fontsize=8, color=LADDER)
    return figure


def noise_levels() -> Figure:
    """The noise level over a decode: it falls within a stage and rises at each jump."""
    figure = _figure(9.0, 2.7)
    for place, scales in enumerate((1, 2, 3, 4)):
        axes = figure.add_subplot(1, 4, place + 1)
        stages = StageSchedule.uniform(scales).stages
        sides = ["H" if stage.downscale == 1 else f"H/{stage.downscale}" for stage in stages]
        for stage, after in zip(stages, (*stages[1:], None), strict=True):
            begin, end = 1 - stage.coordinate_start, 1 - stage.coordinate_end
            width = 0.8 + 2.4 / stage.downscale
            axes.plot([begin, end], [stage.t_start, stage.t_end], color=LADDER, linewidth=width)
            if after is not None:
                axes.plot([end, end], [stage.t_end, after.t_start], color=FULL, linewidth=1.4, linestyle=(0, (2, 1)))
        axes.set(xlim=(0, 1), ylim=(0, 1.02), title=f"K = {scales}")
        axes.set_xticks([1 - (stage.coordinate_start + stage.coordinate_end) / 2 for stage in stages], sides)
        axes.tick_params(axis="x", length=0)
        axes.grid(visible=False, axis="x")
    figure.axes[0].set_ylabel("noise level")
    lines = [Line2D([], [], color=LADDER, linewidth=2), Line2D([], [], color=FULL, linestyle=(0, (2, 1)))]
    figure.legend(lines, ["inside a stage", "jump"], loc="lower right", ncols=2, fontsize=8)
    figure.text(0.06, 0.05, "side of each stage, in the order in which they run", fontsize=8, color=GREY)
    figure.subplots_adjust(left=0.06, right=0.99, top=0.89, bottom=0.23, wspace=0.22)
    return figure


def jump_parts() -> tuple[Tensor, Tensor, Tensor]:
    """Noise with repeated pixels, what the first jump of three stages adds to it, and their sum."""
    schedule = StageSchedule.uniform(3)
    level, gamma, shape = schedule.stages[0].t_end, schedule.gamma, (1, 1, 256, 256)
    before = level * normal(shape, generator(0))
    after = jump(before, t_end=level, gamma=gamma, generators=generators([1]))
    added = jump(torch.zeros(shape), t_end=level, gamma=gamma, generators=generators([1]))
    return up(before), added, after


def jump_noise() -> Figure:
    """The noise before, in and after a jump, and what is correlated in each."""
    first, second, *_ = StageSchedule.uniform(3).stages
    titles = [
        f"end of stage 0, pixels repeated:\nnoise level {first.t_end:.2f}, in blocks",
        "what the jump adds:\neach block sums to 0",
        f"start of stage 1:\nnoise level {second.t_start:.2f}, white",
    ]
    figure = _figure(8.0, 4.6)
    for place, (title, noise) in enumerate(zip(titles, jump_parts(), strict=True)):
        axes = figure.add_subplot(2, 3, place + 1)
        _show(axes, noise[..., :32, :32] / 2)
        axes.set_title(title, fontsize=9)
        axes = figure.add_subplot(2, 3, place + 4)
        _show_matrix(axes, block_covariance(noise))
        if place == 0:
            axes.set_ylabel("covariance of the four\npixels of a block", fontsize=8)
    figure.subplots_adjust(left=0.08, right=0.99, top=0.9, bottom=0.03, hspace=0.08, wspace=0.05)
    return figure


def one_step() -> Figure:
    """Eight decodes of the toy by four decoders, one row each."""
    images, count = toy.shapes(), 8
    rows = {
        "1 scale, 1 step": (1, 1),
        "3 scales, 1 step each": (3, 1),
        "1 scale, 16 steps": (1, 16),
        "3 scales, 16 steps each": (3, 16),
    }
    figure = _figure(8.0, 3.6)
    for row, (name, (scales, steps)) in enumerate(rows.items()):
        drawn = toy.decode(toy.ExactDenoiser(images), scales, steps, range(count))[-1].x
        for column in range(count):
            axes = figure.add_subplot(len(rows), count, row * count + column + 1)
            _show(axes, drawn[column : column + 1])
            if column == 0:
                axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
            if row == 0:
                axes.set_title(f"seed {column}", fontsize=8)
    figure.subplots_adjust(left=0.2, right=0.995, top=0.92, bottom=0.01, hspace=0.06, wspace=0.06)
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    "ladder": ladder,
    "noise-levels": noise_levels,
    "jump": jump_noise,
    "one-step": one_step,
}


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def _show(axes: Axes, image: Tensor) -> None:
    """Draws one image (1, C, h, w) without a frame."""
    picture = to_pil(image[0].clamp(-1, 1).expand(3, -1, -1))
    axes.imshow(picture, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _show_matrix(axes: Axes, matrix: np.ndarray) -> None:
    """Draws a matrix with its numbers."""
    axes.imshow(matrix, vmin=-0.7, vmax=0.7, cmap="PuOr")
    for (row, column), value in np.ndenumerate(matrix):
        text, color = f"{value:.2f}".replace("-0.00", "0.00"), "white" if abs(value) > 0.4 else "black"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=color)
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)


def block_covariance(noise: Tensor) -> np.ndarray:
    """Covariance of the four pixels of a 2 x 2 block, over all blocks."""
    blocks = noise.unfold(2, 2, 2).unfold(3, 2, 2).reshape(-1, 4)
    return torch.cov(blocks.T).numpy()


def _png(draw: Callable[[], Figure]) -> bytes:
    with matplotlib.style.context(["default", STYLE]):
        buffer = io.BytesIO()
        draw().savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _same(one: bytes, other: bytes) -> bool:
    a, b = (np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=np.int16) for data in (one, other))
    return a.shape == b.shape and float(np.abs(a - b).mean()) <= TOLERANCE


if __name__ == "__main__":
    sys.exit(main())
