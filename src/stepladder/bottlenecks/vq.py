"""Vector quantisation: each vector becomes the nearest one of a codebook, which follows them as a moving average.

With features y of unit scale, codes e_1 .. e_K, the vectors Y_i of a batch of n that are nearest to e_i, and decay d

    z = e_k,  k = argmin_i |y - e_i|          the gradient passes straight to y
    u_i <- d u_i + (1 - d) |Y_i| / n          running share of the vectors, its usage
    e_i <- e_i + (1 - d) |Y_i| / (n u_i) (mean of Y_i - e_i)     a step towards the mean of its vectors
    loss = weight mean((y - sg(z))^2)         keeps the encoder near the codes

which is the average of sums over the average of counts, without a division for unused codes. A code whose usage falls
below a fraction of the even share 1 / K is dead and is replaced by a vector of the batch. All codes are dead when
training starts, so the first batch initialises the codebook. Counts and sums are taken over all processes, and dead
codes move to vectors of the first process, so that all processes keep the same codebook.

Codes are the centres of their cells, so the variance of latents is 1 minus the error of the quantisation.

References: Neural Discrete Representation Learning (van den Oord et al., 2017), appendix A.1,
https://arxiv.org/abs/1711.00937; dead codes: Jukebox (Dhariwal et al., 2020), https://arxiv.org/abs/2005.00341

This does not use vector-quantize-pytorch 1.32, because it draws the vectors for dead codes from torch's global
generator; decides when it is built whether several processes share statistics; makes one-hot matrices of vectors by
codes in training (1.0 GiB for 8,192 of both, where distances alone are 0.25 GiB); and breaks a compiled graph in three
places, also in evaluation.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, distributed
from torch.nn import functional as F

from stepladder.bottlenecks.base import Bottleneck, BottleneckOutput
from stepladder.bottlenecks.codes import code_statistics, from_rows, straight_through, to_rows
from stepladder.configs import check_between
from stepladder.errors import ConfigError

__all__ = ["VQBottleneck", "VQConfig"]

_MAX_VECTORS = 2**20
"""Most codes: each is compared with every vector."""


@dataclass(frozen=True, kw_only=True)
class VQConfig:
    """A latent of codebook vectors."""

    kind: Literal["vq"] = "vq"
    """Which bottleneck."""
    codebook_size: int = 1024
    """K, number of codes; 2 or more."""
    decay: float = 0.99
    """d, of the moving averages, in [0, 1)."""
    commitment: float = 0.25
    """Weight of the distance of features to their codes, averaged over all values, in the training loss; at least 0."""
    dead_below: float = 0.02
    """A code that is used less than this fraction of the even share is replaced by a vector of the batch; in [0, 1), 0
    for never. An unused code is dead after log(dead_below) / log(decay) steps, 390 by default."""

    def __post_init__(self) -> None:
        check_between(self, 2, _MAX_VECTORS, "codebook_size", where="VQ", usual="512 to 16384")
        if not 0 <= self.decay < 1:
            raise ConfigError(f"Codebook decay {self.decay} is outside [0, 1). Usual values: 0.9 to 0.999.")
        check_between(self, 0, 10**6, "commitment", where="VQ", usual="0.25")
        if not 0 <= self.dead_below < 1:
            raise ConfigError(f"Dead-code fraction {self.dead_below} is outside [0, 1). Usual: 0.02; 0 for never.")


class VQBottleneck(Bottleneck):
    """Normalises, and takes the nearest code; in training mode with gradients, it updates the codes."""

    codebook: Tensor
    usage: Tensor

    def __init__(self, config: VQConfig, channels: int) -> None:
        super().__init__(channels)
        self.config = config
        self.codebook_size = config.codebook_size
        self.register_buffer("codebook", torch.randn(config.codebook_size, channels))
        self.register_buffer("usage", torch.zeros(config.codebook_size))

    def forward(self, features: Float[Tensor, "b ..."], generator: torch.Generator | None = None) -> BottleneckOutput:
        """Returns latent, indices and commitment loss.

        Raises:
            ValueError: If the codebook is updated, which draws vectors for dead codes, and no generator is given.
        """
        smooth = to_rows(self.scale(features)).float()
        vectors = smooth.detach().flatten(0, -2)  # (n, D)
        learns = self.training and torch.is_grad_enabled()
        if learns:
            if generator is None:
                raise ValueError("A codebook in training mode draws vectors for dead codes. Pass a generator.")
            self._revive(vectors, generator)
        indices = self._nearest(vectors).view(smooth.shape[:-1])
        latent = self._look_up(indices)
        if learns:
            self._follow(vectors, indices.flatten())
        return BottleneckOutput(
            latent=from_rows(straight_through(latent, smooth)),
            loss=self.config.commitment * F.mse_loss(smooth, latent),
            indices=indices,
            statistics=code_statistics(indices, self.config.codebook_size) if self.training else {},
        )

    def from_indices(self, indices: Int[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """The latent that `forward` returns with these indices, each from 0 to `codebook_size` - 1."""
        return from_rows(self._look_up(indices))

    def _look_up(self, indices: Tensor) -> Tensor:
        return F.embedding(indices, self.codebook).float()

    def _nearest(self, vectors: Tensor) -> Tensor:
        """Index of the nearest code to each of (n, D), in single precision also under autocast."""
        return torch.cdist(vectors, self.codebook.float()).argmin(1)

    @torch.no_grad()
    def _revive(self, vectors: Tensor, generator: torch.Generator) -> None:
        """Moves dead codes to vectors of the batch, each vector to one code only."""
        order = torch.randperm(vectors.shape[0], generator=generator, device=generator.device)
        fresh = vectors[order[: self.config.codebook_size]]
        if _several_processes():
            distributed.broadcast(fresh, src=0)
        dead = self.usage < self.config.dead_below / self.config.codebook_size
        rank = dead.cumsum(0) - 1  # of a code among the dead; there may be more of them than vectors
        moves = dead & (rank < fresh.shape[0])
        moved = fresh[rank.clamp(0, fresh.shape[0] - 1)]
        self.codebook.copy_(torch.where(moves[:, None], moved, self.codebook))
        self.usage.masked_fill_(moves, 1 / self.config.codebook_size)

    @torch.no_grad()
    def _follow(self, vectors: Tensor, indices: Tensor) -> None:
        """One step of the moving averages."""
        ones = vectors.new_ones(vectors.shape[0], 1)
        sums = vectors.new_zeros(self.config.codebook_size, vectors.shape[1] + 1)
        sums.index_add_(0, indices, torch.cat([vectors, ones], dim=1))
        if _several_processes():
            distributed.all_reduce(sums)
        counts = sums[:, -1]
        news = (1 - self.config.decay) * counts / counts.sum()
        self.usage.mul_(self.config.decay).add_(news)
        weight = torch.where(counts > 0, news / self.usage, 0)
        means = sums[:, :-1] / counts.clamp(min=1)[:, None]
        self.codebook.lerp_(means, weight[:, None])


def _several_processes() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
