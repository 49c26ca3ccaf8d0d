"""A transformer denoiser for latents that are lists of tokens.

    x (at the scale of the stage) -> patches (P x P) -> one stream;   latent tokens -> the other
    joint blocks, modulated by noise coordinate and scale;   patches after the last one -> image

The patch has the same number of pixels at every scale, so a stage at half the side has a quarter of the patches: coarse
stages are cheap. The latent stream has the same length at every stage.

With a head, two convolutions on a few features at each pixel and x add to the image of the patches; they work across
the borders of patches, so that patches leave no visible grid. With `previous`, the network also sees the enlarged clean
image of the stage before and adds to it, because the jump buries most of that image in noise. With a linear part, each
latent token estimates its cell of the image by a linear layer, which can start from principal components, and the
network adds to that estimate, with its low frequencies replaced by those of the previous clean image. The networks of
the paper have none of the three.

Reference: arXiv 2603.19570; Scaling Rectified Flow Transformers (Esser et al., 2024), https://arxiv.org/abs/2403.03206
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepladder.configs import MAX_WIDTH, check_between
from stepladder.decoders.base import Context, DecoderNetwork, PredictionKind, clean_from_prediction, enlarge
from stepladder.errors import ConfigError
from stepladder.layouts import TokenLayout, token_cell
from stepladder.nn.blocks import zero_init
from stepladder.nn.embedding import ScalarEmbedding
from stepladder.nn.rotary import LatentPositions, grid_angles, token_angles
from stepladder.nn.transformer import AdaptiveNorm, JointBlock, check_transformer, run_blocks
from stepladder.sampling.denoiser import Denoised
from stepladder.sampling.path import LinearEstimate, linear_estimate
from stepladder.sampling.stages import Stage

__all__ = ["MMDiTDecoder", "MMDiTDecoderConfig"]

_FREQUENCIES = 256


@dataclass(frozen=True, kw_only=True)
class MMDiTDecoderConfig:
    """Sizes of the transformer denoiser."""

    kind: Literal["mmdit"] = "mmdit"
    """Which decoder."""
    prediction: PredictionKind = "clean"
    """What the network predicts: the clean image (x-prediction), or the velocity."""
    patch: int = 16
    """P, side of a patch at every scale."""
    width: int = 768
    """Features of a token inside the blocks."""
    depth: int = 12
    """Joint blocks."""
    heads: int = 12
    """Attention heads."""
    latent_positions: LatentPositions = "cross"
    """Rotary positions of the latent tokens: 'none', '1d', 'cross' (a row below the image) or 'grid' (over it)."""
    head_width: int = 0
    """Channels of the convolutions at full resolution; 0 for none, just a linear layer from patches to pixels."""
    previous: bool = False
    """Whether it sees the clean image of the stage before."""
    linear: bool = False
    """Whether latent tokens, spread over the image, estimate it by a linear layer, to which the network adds."""
    null_latent: bool = False
    """Whether it has a learned null latent: context dropout and guidance need it."""

    def __post_init__(self) -> None:
        check_transformer("Decoder", self.patch, self.width, self.depth, self.heads)
        check_between(self, 0, MAX_WIDTH, "head_width", where="Decoder", usual="16; 0 for none")


class MMDiTDecoder(DecoderNetwork):
    """Noisy images (B, 3, h, w) to clean ones, given the context of a latent."""

    can_checkpoint = True

    def __init__(self, config: MMDiTDecoderConfig, layout: TokenLayout) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.read = nn.Linear(layout.channels, width)
        self.null = nn.Parameter(torch.randn(layout.tokens, layout.channels)) if config.null_latent else None

        self.noise_embedding = ScalarEmbedding(_FREQUENCIES)
        self.scale_embedding = ScalarEmbedding(_FREQUENCIES, max_turns=4.0)
        self.embed = nn.Sequential(nn.Linear(_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

        self.linear = None
        if config.linear:
            self.side, self.cell = layout.side, token_cell(layout.tokens, layout.side)
            self.linear = nn.Linear(layout.channels, 3 * self.cell[0] * self.cell[1])

        seen = 6 if config.previous or config.linear else 3
        self.stem = nn.Linear(seen * config.patch**2, width)
        self.blocks = nn.ModuleList(
            JointBlock(width, config.heads, embedding=width, last=i == config.depth - 1) for i in range(config.depth)
        )
        self.norm = AdaptiveNorm(width, width)
        self.out = zero_init(nn.Linear(width, 3 * config.patch**2))
        if config.head_width:
            self.to_head = nn.Linear(width, config.head_width * config.patch**2)
            self.head = nn.Conv2d(3 + config.head_width + seen, config.head_width, 3, padding=1)
            self.from_head = zero_init(nn.Conv2d(config.head_width, 3, 3, padding=1))

    @property
    def side_multiple(self) -> int:
        """P."""
        return self.config.patch

    @property
    def output_layers(self) -> tuple[nn.Module, ...]:
        """The last linear layer, and the last convolution of the head."""
        return (self.out, self.from_head) if self.config.head_width else (self.out,)

    @property
    def guidable(self) -> bool:  # type: ignore[override]
        """Whether it has a null latent."""
        return self.null is not None

    def context(self, latent: Float[Tensor, "b n d"], dropped: Bool[Tensor, " b"] | None = None) -> Context:
        """Reads a latent (B, N, D); with a linear part there is an initial estimate.

        Args:
            latent: Tokens.
            dropped: Images that are decoded without their latent.

        Raises:
            ConfigError: If some are dropped, and the network has no null latent.
        """
        if dropped is not None:
            if self.null is None:
                raise ConfigError(
                    "The decoder has no null latent, so none can be left out. Set tokenizer.decoder.null_latent and "
                    "train it with loss.context_dropout."
                )
            latent = torch.where(dropped[:, None, None], self.null.to(latent.dtype), latent)
        initial = None
        if self.linear is not None:
            cells = self.linear(latent).transpose(1, 2).float()  # (B, 3 x rows x columns of a cell, N)
            initial = F.fold(cells, (self.side, self.side), self.cell, stride=self.cell)
        return Context(features=self.read(latent), initial=initial)

    @torch.no_grad()
    def start_from_synthesis(self, synthesis: Float[Tensor, "c n"], mean: Float[Tensor, " n"]) -> None:
        """Makes the initial estimate the linear decoding of a linear code: latent times matrix, plus mean."""
        if self.linear is None:
            super().start_from_synthesis(synthesis, mean)
            return
        self.linear.weight.copy_(synthesis.T)
        assert self.linear.bias is not None
        self.linear.bias.copy_(mean)

    def forward(
        self,
        x: Float[Tensor, "b 3 h w"],
        u: Float[Tensor, " b"],
        stage: Stage,
        context: Context,
        previous: Denoised | None,
    ) -> Denoised:
        """Estimates the clean image at one stage.

        Args:
            x: Noisy image; sides are multiples of the patch.
            u: Local times in [0, 1], float32.
            stage: Which stage.
            context: From `context`.
            previous: Result of the stage before, at half the side of `x`; None at the first stage.
        """
        config = self.config
        base = self._base(x, stage, context, previous if config.previous else None)
        if config.linear:
            estimate = linear_estimate(x, base, u, stage)
        else:  # the latent has not been read yet: what it leaves open is not what is left of the base
            estimate = LinearEstimate(clean=base, deviation=torch.ones_like(u)[:, None, None, None], innovation=x)
        embedding = self.place(u, stage)
        sees_base = config.previous or config.linear
        seen = torch.cat([estimate.innovation, base], dim=1) if sees_base else estimate.innovation
        residual = self._residual(seen.to(self.stem.weight.dtype), embedding, context)
        if config.prediction == "clean":
            residual = torch.addcmul(estimate.clean, residual.float(), estimate.deviation)
        return Denoised(clean_from_prediction(residual, config.prediction, x, u, stage))

    def _base(self, x: Tensor, stage: Stage, context: Context, previous: Denoised | None) -> Float[Tensor, "b 3 h w"]:
        if self.config.linear:
            return context.base(stage, previous)
        return torch.zeros_like(x) if previous is None else enlarge(previous.clean)

    def embedding(self, u: Float[Tensor, " b"], stage: Stage) -> Float[Tensor, "b d"]:
        """Embedding of noise coordinate and scale."""
        coordinate = stage.coordinate(u)
        scale = torch.full_like(coordinate, math.log2(stage.downscale) / 8)
        place = self.noise_embedding(coordinate) + self.scale_embedding(scale)
        embedding: Tensor = self.embed(place.to(self.stem.weight.dtype))  # times stay in float32 until here
        return embedding

    def _residual(self, seen: Tensor, embedding: Tensor, context: Context) -> Float[Tensor, "b 3 h w"]:
        """Output of the transformer, and of the head if there is one."""
        config = self.config
        patches = F.pixel_unshuffle(seen, config.patch)  # (B, c P P, h/P, w/P)
        rows, columns = patches.shape[2:]
        pairs = config.width // config.heads // 2
        latent = context.features
        angles = (
            grid_angles(rows, columns, pairs, seen.device),
            token_angles(config.latent_positions, latent.shape[1], pairs, seen.device),
        )
        image = self.stem(patches.flatten(2).transpose(1, 2))  # (B, patches, D)
        image, _ = run_blocks(self.blocks, image, latent, angles, embedding, checkpointing=self.checkpointing)
        image = self.norm(image, embedding)
        residual = self._to_pixels(self.out(image), rows)
        if config.head_width:
            pixels = self._to_pixels(self.to_head(image), rows)  # (B, head_width, h, w)
            h = self.head(torch.cat([residual, pixels, seen.to(pixels.dtype)], dim=1))
            residual = residual + self.from_head(F.silu(h))
        return residual

    def _to_pixels(self, patches: Float[Tensor, "b n d"], rows: int) -> Float[Tensor, "b c h w"]:
        """Assembles patches, given row by row, into an image."""
        grid = patches.transpose(1, 2).unflatten(2, (rows, -1))  # (B, c P P, h/P, w/P)
        return F.pixel_shuffle(grid, self.config.patch)
