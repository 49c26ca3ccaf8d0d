"""Finite scalar quantisation: each channel is bounded and rounded to one of a few levels; there is nothing to learn.

For a feature y of unit scale and a channel of L levels

    k = round((L - 1) (tanh(y) + 1) / 2)      level 0 .. L-1; the gradient is that without the rounding
    z = (k - (L - 1) / 2) / sqrt((L^2 - 1) / 12)
    index = k_1 + L_1 (k_2 + L_2 (k_3 + ...))

z has zero mean and unit variance if all levels are used equally. Gaussian features of unit scale come close to that
(standard deviation 0.93 to 1.03). So features are normalised by the running scale, and the map from an index to its
latent is constant: it never drifts and needs no buffer. With an odd L this is the rounding of the paper; with an even L
the paper shifts the levels so that one of them is 0, whereas here they stay symmetric about 0, also for L = 2.

Reference: Finite Scalar Quantization: VQ-VAE Made Simple (Mentzer et al., 2023), https://arxiv.org/abs/2309.15505

This does not use vector-quantize-pytorch 1.32, because it cannot be built on the meta device, where checkpoints are
loaded (it asks a tensor for the codebook size, and keeps its levels in buffers that are not stored), and refuses two
levels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepladder.bottlenecks.base import Bottleneck, BottleneckOutput
from stepladder.bottlenecks.codes import MAX_CODES, code_statistics, from_rows, straight_through, to_rows
from stepladder.errors import ConfigError

__all__ = ["FSQBottleneck", "FSQConfig"]

_MAX_LEVEL = 2**16
"""Most levels that single precision distinguishes."""


@dataclass(frozen=True, kw_only=True)
class FSQConfig:
    """A latent of whole levels; the number of codes is the product of the levels."""

    kind: Literal["fsq"] = "fsq"
    """Which bottleneck."""
    levels: list[int]
    """Levels of each channel of the latent, 2 or more. The paper's sets: 8 6 5 for 240 codes, 8 5 5 5 for 1,000,
    7 5 5 5 5 for 4,375, 8 8 8 6 5 for 15,360, 8 8 8 5 5 5 for 64,000."""

    def __post_init__(self) -> None:
        if not self.levels:
            raise ConfigError("FSQ levels are empty. Accepted: one number for each channel. Usual: [8, 5, 5, 5].")
        if len(self.levels) > MAX_CODES.bit_length():
            raise ConfigError(
                f"FSQ levels are {len(self.levels)} numbers, which make over {MAX_CODES} codes. Use fewer channels."
            )
        odd = [level for level in self.levels if not 2 <= level <= _MAX_LEVEL]
        if odd:
            raise ConfigError(
                f"FSQ levels {self.levels} hold {odd[0]}. Accepted: 2 to {_MAX_LEVEL} for each channel. Usual: 5 to 8."
            )
        if math.prod(self.levels) > MAX_CODES:
            raise ConfigError(
                f"FSQ levels {self.levels} make {math.prod(self.levels)} codes. Accepted: up to {MAX_CODES}. "
                "Use fewer channels or levels."
            )


class FSQBottleneck(Bottleneck):
    """Normalises, bounds and rounds."""

    def __init__(self, config: FSQConfig, channels: int) -> None:
        super().__init__(channels)
        if len(config.levels) != channels:
            raise ConfigError(
                f"FSQ levels {config.levels} are {len(config.levels)} for a latent of {channels} channels. "
                "Accepted: one for each channel. Set latent_channels or the levels."
            )
        self.config = config
        self.codebook_size = math.prod(config.levels)

    def forward(self, features: Float[Tensor, "b ..."], generator: torch.Generator | None = None) -> BottleneckOutput:
        """Returns latent and indices; draws nothing."""
        smooth = 0.5 * self._top(features) * (to_rows(self.scale(features)).float().tanh() + 1)
        levels = smooth.detach().round()
        latent = straight_through(self._normalised(levels), self._normalised(smooth))
        indices = (levels.long() * self._place_values(features)).sum(-1)
        return BottleneckOutput(
            latent=from_rows(latent),
            loss=latent.new_zeros(()),
            indices=indices,
            statistics=code_statistics(indices, math.prod(self.config.levels)) if self.training else {},
        )

    def from_indices(self, indices: Int[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """The latent that `forward` returns with these indices, each from 0 to `codebook_size` - 1."""
        sizes = _constant(self.config.levels, indices)
        levels = indices[..., None] // self._place_values(indices) % sizes
        return from_rows(self._normalised(levels.float()))

    def _normalised(self, levels: Tensor) -> Tensor:
        """Levels (..., c) to values of zero mean and unit variance."""
        top = self._top(levels)
        return (levels - 0.5 * top) * (12 / (top * (top + 2))).sqrt()  # L^2 - 1 = (L - 1) (L + 1)

    def _top(self, like: Tensor) -> Tensor:
        """L - 1 of each channel."""
        return _constant([level - 1.0 for level in self.config.levels], like)

    def _place_values(self, like: Tensor) -> Tensor:
        """1, L_1, L_1 L_2, ..."""
        return _constant([math.prod(self.config.levels[:i]) for i in range(len(self.config.levels))], like)


def _constant(values: Sequence[float], like: Tensor) -> Tensor:
    """On the device of a tensor, filled there: a copy from the host would make it wait."""
    return torch.stack([torch.full((), value, device=like.device) for value in values])
