"""The flow loss of a ladder: every image of a batch at every stage.

For each stage, the image at the scale of the stage, one white noise and a local time u give a point on the stage's path
(`stages.path`). The loss compares either

    "clean"      X_hat with X                     errors of X weigh the same at every noise level
    "balanced"   X_hat with X, times s / level    low levels, whose errors are small, contribute as much as high ones
    "velocity"   w_hat with w                     errors of X weigh about 1 / level^2: low levels dominate

with the level clamped from below at `NOISE_FLOOR_IN_TRAINING`, times the weight of the noise level where there is one
(`times`).

Coarse stages run at their own side, without padding. The clean image of one stage is passed to the next as `previous`,
without a gradient, so it has the errors that it has when decoding.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from stepladder.losses.perceptual import FeaturePyramid, perceptual_distance
from stepladder.losses.times import FlowWeighting, LocalTimes, sigmoid_weight
from stepladder.sampling.denoiser import Denoised, Denoiser
from stepladder.sampling.flow import expand_time
from stepladder.sampling.path import PathPoint, path, velocity_from_clean
from stepladder.sampling.randomness import normal
from stepladder.sampling.scales import down
from stepladder.sampling.stages import Stage, StageSchedule

__all__ = ["NOISE_FLOOR_IN_TRAINING", "FlowTarget", "LadderLoss", "StageDraw", "draw_stages", "ladder_loss"]

FlowTarget = Literal["clean", "balanced", "velocity"]

NOISE_FLOOR_IN_TRAINING = 0.05
"""Noise level below which the weight of an error of X stops growing."""


@dataclass(frozen=True, slots=True)
class StageDraw:
    """The random numbers of one stage of one batch."""

    noise: Float[Tensor, "b c h w"]
    u: Float[Tensor, " b"]


@dataclass(frozen=True, slots=True)
class LadderLoss:
    """The parts of the loss, each a scalar."""

    flow: tuple[Float[Tensor, ""], ...]
    """Mean squared error at each stage."""
    perceptual: Float[Tensor, ""]
    """Perceptual distance of the clean estimate at the last stage."""
    initial: Float[Tensor, ""] | None
    """Mean squared error of the initial estimate that the context holds; None if it holds none."""


_UNIFORM = LocalTimes()


def draw_stages(
    schedule: StageSchedule,
    images: Float[Tensor, "b c H W"],
    generator: torch.Generator,
    *,
    times: LocalTimes = _UNIFORM,
) -> list[StageDraw]:
    """Draws noise and local times for every stage; times are stratified over the batch, in (0, 1].

    They follow the density of the stage's time grid.
    """
    b, c, h, w = images.shape
    draws = []
    for stage in schedule.stages:
        noise = normal((b, c, h // stage.downscale, w // stage.downscale), generator)
        u = times.draw(b, generator, shift=stage.time_shift)
        draws.append(StageDraw(noise=noise.to(images.device), u=u.to(images.device)))
    return draws


def ladder_loss(
    denoiser: Denoiser,
    schedule: StageSchedule,
    images: Float[Tensor, "b c H W"],
    initial: Float[Tensor, "b c H W"] | None,
    draws: list[StageDraw],
    *,
    target: FlowTarget,
    features: FeaturePyramid | None,
    weighting: FlowWeighting = "none",
    weighting_bias: float = -3.0,
) -> LadderLoss:
    """The loss of a batch at all stages.

    Args:
        denoiser: Called once for each stage.
        schedule: The ladder.
        images: Clean images in [-1, 1]; sides fit the coarsest stage.
        initial: The decoder's estimate from the latents alone; None if it makes none.
        draws: From `draw_stages`.
        target: What is compared.
        features: Network of the perceptual loss; None leaves that part at zero.
        weighting: Additional weight of each noise level.
        weighting_bias: Of the sigmoid weight.
    """
    flow = []
    previous: Denoised | None = None
    clean_estimate = images
    for stage, draw in zip(schedule.stages, draws, strict=True):
        clean = down(images, stage.downscale)
        point = path(clean, draw.noise, draw.u, stage)
        denoised = denoiser(point.x, draw.u, stage, previous)
        errors = _errors(denoised.clean, point, clean, draw.u, stage, target)
        if weighting == "sigmoid":
            errors = errors * expand_time(sigmoid_weight(_level(stage, draw.u), bias=weighting_bias), errors)
        flow.append(errors.mean())
        clean_estimate = denoised.clean
        previous = denoised.detach()
    perceptual = images.new_zeros(())
    if features is not None:
        perceptual = perceptual_distance(features, clean_estimate, images).mean()
    return LadderLoss(
        flow=tuple(flow), perceptual=perceptual, initial=None if initial is None else (initial - images).square().mean()
    )


def _errors(
    found: Tensor, point: PathPoint, clean: Tensor, u: Tensor, stage: Stage, target: FlowTarget
) -> Float[Tensor, "b ..."]:
    """What is compared: one number for each image, or for each of its pixels."""
    if target == "velocity":
        velocity = velocity_from_clean(point.x, found, u, stage, floor=NOISE_FLOOR_IN_TRAINING)
        return (velocity - point.velocity).square()
    errors = (found - clean).square().mean(dim=(1, 2, 3))
    return errors * (stage.t_start / _level(stage, u)) if target == "balanced" else errors


def _level(stage: Stage, u: Tensor) -> Float[Tensor, " b"]:
    return stage.noise_level(u).clamp_min(NOISE_FLOOR_IN_TRAINING)
