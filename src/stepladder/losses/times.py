"""The noise levels of a flow loss, and their weights.

Local times u in (0, 1] are drawn at each stage, stratified: one from each of as many equal shares of their distribution
as there are images in the batch, in random order. With v uniform in (0, 1]:

    uniform         u = v
    logit-normal    u = sigmoid(location + scale Phi^-1(v)),    Phi^-1(v) is normal

In the second, logit(u) = log(u / (1-u)) is normal, hence its name. Either is then shifted,
u <- shift u / (1 + (shift-1) u): with a shift below 1, low noise levels are more frequent. For the second this adds
log(shift) to the location.

The sigmoid weight. With t the noise level and lambda = 2 log((1-t) / t) its log-SNR, an error has the weight

    w(t) = - 1/2 dlambda/dt e^b sigmoid(lambda - b) = e^b (1-t) / (t ((1-t)^2 + e^b t^2)),      b the bias, usually -3

so that, as a function of lambda, the weight falls for log-SNRs below the bias, whatever the schedule. In theory it
multiplies the squared error of the clean image; the code published with arXiv 2603.19570 multiplies that of the
velocity, and uses the local time of a stage as t. Here t is the noise level, which means the same at every stage, and
the caller chooses the error. w grows as e^b / t at t = 0, where the level is clamped, and is 0 at t = 1.

References: Scaling Rectified Flow Transformers (Esser et al., 2024), sections 3.1 and 5.3.2,
https://arxiv.org/abs/2403.03206, for the times; Understanding Diffusion Objectives as the ELBO with Simple Data
Augmentation (Kingma & Gao, 2023), https://arxiv.org/abs/2303.00848, and Simpler Diffusion (Hoogeboom et al., 2024),
https://arxiv.org/abs/2410.19324, for the weight.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from stepladder.sampling.randomness import uniform

__all__ = ["FlowWeighting", "LocalTimes", "TimeDistribution", "sigmoid_weight"]

TimeDistribution = Literal["uniform", "logit-normal"]

FlowWeighting = Literal["none", "sigmoid"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalTimes:
    """How local times are drawn."""

    distribution: TimeDistribution = "uniform"
    """Before the shift."""
    location: float = 0.0
    """Mean of log(u / (1-u)), of logit-normal times."""
    scale: float = 1.0
    """Its standard deviation."""
    shift: float = 1.0
    """Below 1, low noise levels are more frequent."""

    def draw(self, count: int, generator: torch.Generator, *, shift: float = 1.0) -> Float[Tensor, " count"]:
        """Local times in (0, 1], float32, on the device of the generator; `shift` multiplies the configured one."""
        shift *= self.shift
        u = 1 - uniform(count, generator)
        if self.distribution == "logit-normal":
            u = torch.sigmoid(self.location + self.scale * torch.special.ndtri(u))
        return shift * u / (1 + (shift - 1) * u)


def sigmoid_weight(level: Float[Tensor, " b"], *, bias: float) -> Float[Tensor, " b"]:
    """The weight w of an error at noise levels in (0, 1], in float32; levels are clamped by the caller."""
    image, strength = 1 - level, math.exp(bias)
    return strength * image / (level * (image.square() + strength * level.square()))
