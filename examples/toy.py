"""The ladder, the jump and one step per scale, on eight tiny images and without any network.

    python examples/toy.py [--out build/toy]

The data are eight shapes of 16 x 16 pixels. For so few images the best denoiser is known in closed form: each shape
explains the noisy image with some probability, and the estimate is the mean of the shapes, weighted by that. So nothing
is trained, and everything that a decode does can be seen.

Three things are printed, and drawn into the folder `--out`:

    stages.png     a decode on three scales: where each stage starts, what the denoiser sees in it, where it ends
    jump.png       the noise between two scales: repeated pixels are correlated in blocks of 2 x 2, the jump undoes it
    one-step.png   one step at full resolution, one step per scale, and many steps

One step at full resolution gives the mean of all shapes. One step per scale chooses a little more at each scale.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from stepladder import StageSchedule, StepladderError
from stepladder.images import grid, save_png, to_pil
from stepladder.sampling.denoiser import Denoised
from stepladder.sampling.grids import time_grids
from stepladder.sampling.path import path
from stepladder.sampling.randomness import generator, generators
from stepladder.sampling.sampler import StageEnd, sample
from stepladder.sampling.scales import down, jump, up
from stepladder.sampling.stages import Stage

SIDE = 16
SEEDS = range(64)
SHOWN = 8
"""Pixels of a picture for each pixel of an image."""


class ExactDenoiser:
    """The posterior mean of the clean image, where the data are the given images and each is equally likely.

    A noisy image of a stage is x_u = m_k + level n, with m_k what x_u is for image k without noise. So image k has the
    probability p_k, proportional to exp(-|x_u - m_k|^2 / (2 level^2)), and the mean is the sum of p_k times image k.
    """

    def __init__(self, images: Tensor) -> None:
        self.images = images  # (N, 1, H, W)
        self.seen: list[Tensor] = []
        """The noisy images that it was shown, in order."""

    def __call__(self, x: Tensor, u: Tensor, stage: Stage, previous: Denoised | None) -> Denoised:
        """What every denoiser is asked; this one has no use for what the stage before returned."""
        self.seen.append(x)
        images = down(self.images, stage.downscale)  # (N, 1, h, w)
        return Denoised(torch.cat([self._mean(*each, images, stage) for each in zip(x, u, strict=True)]))

    def _mean(self, x: Tensor, u: Tensor, images: Tensor, stage: Stage) -> Tensor:
        times = u.expand(len(images))
        without_noise = path(images, torch.zeros_like(images), times, stage).x
        distance = (x - without_noise).square().flatten(1).sum(1)
        probability = torch.softmax(-distance / (2 * stage.noise_level(times).square()), dim=0)  # (N,)
        return torch.einsum("n,nchw->chw", probability, images)[None]


def shapes(side: int = SIDE) -> Tensor:
    """Eight white shapes on black, (8, 1, side, side) in [-1, 1]."""
    line = torch.linspace(-1, 1, 4 * side)
    y, x = torch.meshgrid(line, line, indexing="ij")
    radius, square = (x.square() + y.square()).sqrt(), torch.maximum(x.abs(), y.abs())
    masks = [
        radius < 0.7,
        (radius < 0.8) & (radius > 0.45),
        square < 0.6,
        (square < 0.75) & (square > 0.45),
        (torch.minimum(x.abs(), y.abs()) < 0.2) & (square < 0.8),
        ((x - y).abs() < 0.3) | ((x + y).abs() < 0.3),
        (y > 2 * x.abs() - 0.8) & (y < 0.7),
        torch.sin(3.5 * torch.pi * y) > 0,
    ]
    return down(torch.stack(masks)[:, None].float() * 2 - 1, 4)  # four samples a pixel: smooth edges


def decode(denoiser: ExactDenoiser, scales: int, steps: int, seeds: Sequence[int]) -> list[StageEnd]:
    """The ends of the stages of a decode, one image for each seed."""
    schedule = StageSchedule.uniform(scales)
    grids = time_grids(schedule, steps)
    return list(sample(denoiser, schedule, size=(SIDE, SIDE), generators=generators(seeds), grids=grids, channels=1))


def block_correlation(noise: Tensor) -> float:
    """Mean correlation of two neighbours in a row inside blocks of 2 x 2: 1 where pixels repeat, 0 in white noise."""
    left, right = noise[..., 0::2].flatten(), noise[..., 1::2].flatten()
    return float(torch.corrcoef(torch.stack([left, right]))[0, 1])


def distance_to_nearest(drawn: Tensor, images: Tensor) -> float:
    """Root mean square difference between what is drawn and the closest image of the data, averaged."""
    return float((drawn[:, None] - images).square().mean(dim=(2, 3, 4)).sqrt().min(dim=1).values.mean())


# ------------------------------------------------------------------------------------------------------- what it shows


def show_stages(images: Tensor) -> Image.Image:
    """Prints the ladder and draws one decode on it: a row for each stage, with its start, estimate and end."""
    denoiser = ExactDenoiser(images)
    ends = decode(denoiser, scales=3, steps=1, seeds=[1])
    print("The ladder: three stages, coarse first\n")
    print("  stage    side    noise level    estimate to nearest shape")
    rows = []
    for x, end in zip(denoiser.seen, ends, strict=True):
        stage = end.stage
        near = distance_to_nearest(end.clean, down(images, stage.downscale))
        levels = f"{stage.t_start:.2f} -> {stage.t_end:.2f}"
        print(f"  {stage.index:5d} {SIDE // stage.downscale:7d} {levels:>15s} {near:28.2f}")
        rows += [enlarged(x), enlarged(end.clean), enlarged(end.x)]
    return grid(rows, columns=3)


def show_jump() -> Image.Image:
    """Prints and draws what the jump does to noise: before it, with pixels repeated, and after it."""
    schedule, noise = StageSchedule.uniform(3), torch.randn((1, 1, 128, 128), generator=generator(0))
    level = schedule.stages[0].t_end
    before = level * noise  # the end of stage 0 where the image is zero
    repeated = up(before)
    after = jump(before, t_end=level, gamma=schedule.gamma, generators=[generator(1)])
    print("\nThe jump from stage 0 to stage 1, on noise alone\n")
    print("  noise               deviation    correlation in a block")
    for name, x in {"pixels repeated": repeated, "after the jump": after}.items():
        print(f"  {name:17s} {float(x.std()):11.2f} {block_correlation(x):25.2f}")
    return grid([enlarged(part[..., :SIDE, :SIDE]) for part in (repeated, after)], columns=2)


def show_steps(images: Tensor) -> Image.Image:
    """Prints and draws what few steps and many make of the same seeds: a row for each decoder."""
    print("\nOne step per scale\n")
    print("  scales    steps in each    pixels looked at    to nearest shape    shapes drawn")
    rows = []
    for scales, steps in [(1, 1), (3, 1), (1, 16), (3, 16)]:
        ends = decode(ExactDenoiser(images), scales, steps, SEEDS)
        drawn = ends[-1].x
        pixels = steps * sum(end.x[0].numel() for end in ends)
        nearest = (drawn[:, None] - images).square().mean(dim=(2, 3, 4)).argmin(dim=1)
        near, kinds = distance_to_nearest(drawn, images), len(set(nearest.tolist()))
        print(f"  {scales:6d} {steps:16d} {pixels:19d} {near:19.2f} {kinds:15d}")
        rows += [enlarged(image[None]) for image in drawn[:8]]
    return grid(rows, columns=8)


def enlarged(image: Tensor) -> Image.Image:
    """A picture of one image (1, 1, h, w), each pixel a square, all scales at the same size."""
    picture = to_pil(image[0].clamp(-1, 1).expand(3, -1, -1))
    return picture.resize((SHOWN * SIDE, SHOWN * SIDE), Image.Resampling.NEAREST)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the toy; returns its exit status."""
    parser = argparse.ArgumentParser(description="Show ladder, jump and one step per scale on eight tiny images.")
    parser.add_argument("--out", type=Path, default=Path("build/toy"), help="folder for the pictures")
    folder = parser.parse_args(arguments).out
    images = shapes()
    try:
        for name, picture in {
            "stages": show_stages(images),
            "jump": show_jump(),
            "one-step": show_steps(images),
        }.items():
            save_png(picture, folder / f"{name}.png", force=True)
    except StepladderError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"\nPictures: {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
