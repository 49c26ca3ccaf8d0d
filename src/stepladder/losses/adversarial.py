"""The adversarial loss of a student: small discriminator heads on the features of a frozen network.

    hinge      discriminator:  mean max(0, 1 - D(real)) + mean max(0, 1 + D(fake))
               student:        - mean D(fake)

D is a map of scores for each layer of the features; the losses are means over the positions of a layer, then over the
layers. Frozen features of several scales make training stable and cheap: only the heads learn.

Balance. The adversarial gradient on the image is scaled to a fixed share of that of the other losses,

    g = g_other + share |g_other| / |g_adversarial| g_adversarial

so that its weight depends neither on the width of the heads nor on how far ahead they are.

Reference: Projected GANs Converge Faster (Sauer et al., 2021), https://arxiv.org/abs/2111.01007; the adaptive weight is
that of Taming Transformers (Esser et al., 2020), https://arxiv.org/abs/2012.09841, taken at the image instead of at the
last layer.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["DiscriminatorHeads", "balanced_gradient", "discriminator_loss", "student_loss"]


class DiscriminatorHeads(nn.Module):
    """Features of several layers to one map of scores each: high for real images."""

    def __init__(self, channels: Sequence[int], width: int = 64) -> None:
        """One head for each layer.

        Args:
            channels: Of the features of each layer.
            width: Channels inside a head.
        """
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(count, width, 1),
                nn.LeakyReLU(0.2),
                nn.Conv2d(width, width, 3, padding=1),
                nn.LeakyReLU(0.2),
                nn.Conv2d(width, 1, 1),
            )
            for count in channels
        )

    def forward(self, features: Sequence[Float[Tensor, "b _ _ _"]]) -> list[Float[Tensor, "b 1 _ _"]]:
        """Scores of each layer, in float32. Features are brought to unit mean square first."""
        return [head(_unit(layer)).float() for head, layer in zip(self.heads, features, strict=True)]


def discriminator_loss(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Hinge loss of the heads from their scores of real and decoded images; 2 at the start, 0 when certain."""
    layers = [F.relu(1 - r).mean() + F.relu(1 + f).mean() for r, f in zip(real, fake, strict=True)]
    return torch.stack(layers).mean()


def student_loss(fake: Sequence[Tensor]) -> Float[Tensor, ""]:
    """What the student minimises: the negative mean score of its images."""
    return -torch.stack([scores.mean() for scores in fake]).mean()


def balanced_gradient(
    others: Float[Tensor, "b c H W"], adversarial: Float[Tensor, "b c H W"], share: float
) -> Float[Tensor, "b c H W"]:
    """The gradient of all losses on an image, the adversarial one scaled to `share` times the norm of the others."""
    norm = adversarial.norm()
    direction = torch.where(norm > 0, adversarial / norm, 0.0)
    return others + share * others.norm() * direction


def _unit(features: Tensor) -> Tensor:
    features = features.float()
    return features * torch.rsqrt(features.square().mean(dim=(1, 2, 3), keepdim=True) + 1e-6)
