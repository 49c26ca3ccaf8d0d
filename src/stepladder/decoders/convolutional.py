"""A convolutional denoiser whose cost is linear in pixels, for images of any size.

    latent  -> context: residual blocks on the grid of the latent, and where wanted on that of 1/4 after it, give
               features and an initial estimate (once a decode)
    x, base (at the scale of the stage)
            -> patches of 4 x 4, on a grid of 1/4 -> blocks -> grid of 1/8 -> blocks -> grid of 1/4 -> blocks
            -> 4 x 4 patches of head features -> convolutions at full resolution, which see x and base again -> image

Most of the computation runs on two grids of wide features, where dense 3 x 3 convolutions are efficient matrix
products. Only the thin head runs at full resolution, across the borders of patches, so that patches leave no visible
grid. There are no positions and no statistics over the image, so a network trained on crops decodes any size.

The base is the initial estimate with its low frequencies replaced by those of the previous clean image
(`base.Context`). With x-prediction, the network adds to the best linear estimate from base and noisy image
(`sampling.path.linear_estimate`), in units of its error; with last layers at zero it returns that estimate.

Features are normalised to unit scale before the head, and modulations are bounded. Otherwise features of a coarse
stage, whose loss is small, can grow until the head saturates and its gradient vanishes.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepladder.configs import MAX_DEPTH, MAX_WIDTH, check_between
from stepladder.decoders.base import Context, DecoderNetwork, PredictionKind, clean_from_prediction
from stepladder.errors import ConfigError
from stepladder.nn.blocks import ChannelNorm, Modulation, ResidualBlock, zero_init
from stepladder.nn.embedding import ScalarEmbedding
from stepladder.sampling.denoiser import Denoised
from stepladder.sampling.path import linear_estimate
from stepladder.sampling.scales import down
from stepladder.sampling.stages import Stage

__all__ = ["ConvDecoder", "ConvDecoderConfig"]

_PATCH = 4


@dataclass(frozen=True, kw_only=True)
class ConvDecoderConfig:
    """Sizes of the convolutional denoiser."""

    kind: Literal["conv"] = "conv"
    """Which decoder."""
    prediction: PredictionKind = "clean"
    """What the network predicts: the clean image (x-prediction), or the velocity."""
    width: int = 96
    """Channels on the grid of 1/4."""
    depth: int = 2
    """Residual blocks on the grid of 1/4 before the coarse grid, and as many after it."""
    coarse_width: int = 192
    """Channels on the grid of 1/8."""
    coarse_depth: int = 3
    """Residual blocks on the grid of 1/8."""
    context_width: int = 128
    """Channels of the features of the latent."""
    context_depth: int = 2
    """Residual blocks on the grid of the latent."""
    estimate_width: int = 96
    """Channels on the grid of 1/4 where the initial estimate is made, if it is made there."""
    estimate_depth: int = 0
    """Residual blocks there; 0 makes the initial estimate on the grid of the latent."""
    head_width: int = 16
    """Channels at full resolution."""
    embedding_width: int = 256
    """Width of the embedding of noise coordinate and scale."""
    hand_on_features: bool = False
    """Whether a stage also receives the features of the stage before, beside its clean image."""

    def __post_init__(self) -> None:
        widths = ("width", "coarse_width", "context_width", "estimate_width", "head_width", "embedding_width")
        check_between(self, 1, MAX_WIDTH, *widths, where="Decoder", usual="16 to 512")
        depths = ("depth", "coarse_depth", "context_depth", "estimate_depth")
        check_between(self, 0, MAX_DEPTH, *depths, where="Decoder", usual="2 to 8")
        if self.embedding_width % 2:
            raise ConfigError(f"Decoder embedding_width {self.embedding_width} is odd. Pass an even number.")


class ConvDecoder(DecoderNetwork):
    """Noisy images (B, 3, h, w) to clean ones, given the context of a latent."""

    side_multiple = 2 * _PATCH

    def __init__(self, config: ConvDecoderConfig, latent_channels: int, stride: int) -> None:
        super().__init__()
        self.config = config
        self.stride = stride
        embedding = config.embedding_width
        self.reader = _LatentReader(config, latent_channels, stride)

        self.noise_embedding = ScalarEmbedding(embedding)
        self.scale_embedding = ScalarEmbedding(embedding, max_turns=4.0)
        self.embed = nn.Sequential(
            nn.Linear(embedding, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU()
        )

        self.stem = nn.Conv2d(6 * _PATCH**2, config.width, 3, padding=1)
        self.inject = nn.Conv2d(self.reader.width, config.width, 1)
        self.before = _blocks(config, config.width, config.depth)
        self.coarsen = nn.Conv2d(config.width, config.coarse_width, 3, stride=2, padding=1)
        self.coarse = _blocks(config, config.coarse_width, config.coarse_depth)
        self.refine = nn.Conv2d(config.coarse_width, config.width, 1)
        self.after = _blocks(config, config.width, config.depth)
        self.norm = ChannelNorm(config.width)
        self.modulation = Modulation(embedding, config.width)
        self.head_modulation = Modulation(embedding, config.head_width)
        if config.hand_on_features:
            self.receive_norm = ChannelNorm(config.width)
            self.receive = zero_init(nn.Conv2d(config.width, config.coarse_width, 1))
        self.to_head = nn.Conv2d(config.width, config.head_width * _PATCH**2, 1)
        self.head = nn.Conv2d(config.head_width + 6, config.head_width, 3, padding=1)
        self.out = zero_init(nn.Conv2d(config.head_width, 3, 3, padding=1))

    @property
    def linear(self) -> nn.Conv2d:  # type: ignore[override]
        """The linear part of the initial estimate."""
        return self.reader.linear

    @property
    def initial_layers(self) -> nn.Module:  # type: ignore[override]
        """The reader of the latent."""
        return self.reader

    @property
    def output_layers(self) -> tuple[nn.Module, ...]:
        """The last convolution."""
        return (self.out,)

    def start_from_synthesis(self, synthesis: Float[Tensor, "c n"], mean: Float[Tensor, " n"]) -> None:
        """Makes the initial estimate the linear decoding of a linear code: latent times matrix, plus mean."""
        self.reader.start_from_synthesis(synthesis, mean)

    @property
    def reach(self) -> int:
        """Receptive field of a prediction on each side, in pixels: all convolutions of 3 x 3, each on its own grid."""
        depth, coarse_depth = self.config.depth, self.config.coarse_depth
        after = 1 + 2 * depth  # cells of 1/4: the head, the blocks after the coarse grid
        coarse = -(-after // 2) + 2 * coarse_depth  # cells of 1/8
        return _PATCH * (2 * coarse + 1 + 2 * depth + 1)  # the way to 1/8, the blocks before it, the stem

    @property
    def latent_cell(self) -> int:  # type: ignore[override]
        """The stride of the encoder."""
        return self.stride

    @property
    def latent_reach(self) -> int:  # type: ignore[override]
        """All convolutions on the way from the latent to the initial estimate."""
        finer = self.stride // self.reader.cell
        after = 1 + 2 * self.config.estimate_depth  # convolutions behind the latent's own grid, on one as much finer
        return 1 + 2 * self.config.context_depth + -(-after // finer)

    @property
    def tile_margin(self) -> int:  # type: ignore[override]
        """A third of the receptive field: influence falls off like a bell curve, and is not visible beyond that.

        Reference: Understanding the Effective Receptive Field in Deep Convolutional Neural Networks (Luo et al., 2016),
        https://arxiv.org/abs/1701.04128; docs/large-images.md has it measured.
        """
        multiple = math.lcm(self.side_multiple, self.stride)
        return -(-self.reach // (3 * multiple)) * multiple

    def context(self, latent: Float[Tensor, "b c h w"], dropped: Bool[Tensor, " b"] | None = None) -> Context:
        """Reads a latent (B, c, h, w); its initial estimate has the side of the image.

        Raises:
            ConfigError: If some latents are dropped: the network has no null latent.
        """
        if dropped is not None:
            raise ConfigError("Decoder 'conv' has no null latent, so none can be left out. Decode latents as they are.")
        features, initial = self.reader(latent)
        return Context(features=features, initial=initial)

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
            x: Noisy image; sides are multiples of 8.
            u: Local times in [0, 1], float32.
            stage: Which stage.
            context: From `context`.
            previous: Result of the stage before, at half the side of `x`; None at the first stage.
        """
        base = context.base(stage, previous)
        estimate = linear_estimate(x, base, u, stage)
        dtype = self.stem.weight.dtype  # times and images stay in float32 until here
        embedding = self.place(u, stage)
        seen = torch.cat([estimate.innovation, base], dim=1).to(dtype)  # (B, 6, h, w)
        features = self._features(seen, embedding, stage, context, previous)  # (B, width, h/4, w/4)
        residual = self._head(features, seen, embedding)
        if self.config.prediction == "clean":
            residual = torch.addcmul(estimate.clean, residual.float(), estimate.deviation)
        handed_on = (features,) if self.config.hand_on_features else ()
        return Denoised(clean_from_prediction(residual, self.config.prediction, x, u, stage), handed_on)

    def embedding(self, u: Float[Tensor, " b"], stage: Stage) -> Float[Tensor, "b e"]:
        """Embedding of noise coordinate and scale."""
        coordinate = stage.coordinate(u)
        scale = torch.full_like(coordinate, math.log2(stage.downscale) / 8)
        place = self.noise_embedding(coordinate) + self.scale_embedding(scale)
        embedding: Tensor = self.embed(place.to(self.stem.weight.dtype))
        return embedding

    def _features(
        self, seen: Tensor, embedding: Tensor, stage: Stage, context: Context, previous: Denoised | None
    ) -> Float[Tensor, "b c h w"]:
        """Features on the two coarse grids."""
        injected = _resample(self.inject(context.features), self.reader.cell, _PATCH * stage.downscale)
        h = self.stem(F.pixel_unshuffle(seen, _PATCH)) + injected  # (B, width, h/4, w/4)
        for block in self.before:
            h = block(h, embedding)
        low = self.coarsen(h)  # (B, coarse_width, h/8, w/8)
        if self.config.hand_on_features and previous is not None:
            low = low + self.receive(self.receive_norm(previous.features[0]))
        for block in self.coarse:
            low = block(low, embedding)
        h = h + F.interpolate(self.refine(low), scale_factor=2.0, mode="nearest")
        for block in self.after:
            h = block(h, embedding)
        return h

    def _head(self, features: Tensor, seen: Tensor, embedding: Tensor) -> Float[Tensor, "b 3 h w"]:
        """The layers at full resolution, across the borders of patches."""
        features = self.modulation(self.norm(features), embedding)
        hidden = F.pixel_shuffle(self.to_head(F.silu(features)), _PATCH)  # (B, head_width, h, w)
        hidden = torch.cat([hidden, seen.to(hidden.dtype)], dim=1)  # of one name, so that at most two are held
        hidden = self.head_modulation(self.head(hidden), embedding)
        residual: Tensor = self.out(F.silu(hidden))
        return residual


class _LatentReader(nn.Module):
    """From a latent to features and an initial estimate: a linear map plus a residual of the features.

    Features have the grid of the latent, or with `estimate_depth` the finer one of 1/4, on whose patches the estimate
    is then made: one layer cannot decode a latent whose encoder was trained with a deep decoder.
    """

    def __init__(self, config: ConvDecoderConfig, latent_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.width, self.cell = config.context_width, stride
        self.stem = nn.Conv2d(latent_channels, self.width, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(self.width) for _ in range(config.context_depth)))
        self.linear = nn.Conv2d(latent_channels, 3 * stride**2, 3, padding=1)
        if config.estimate_depth:
            coarse, self.width, self.cell = self.width, config.estimate_width, _PATCH
            self.enlarge = nn.Conv2d(coarse, self.width * _finer(stride) ** 2, 1)
            self.estimate = nn.Sequential(*(ResidualBlock(self.width) for _ in range(config.estimate_depth)))
            self.norm = ChannelNorm(self.width)
        self.refines = config.estimate_depth > 0
        self.out = zero_init(nn.Conv2d(self.width, 3 * self.cell**2, 3, padding=1))

    def forward(self, latent: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b n y x"], Float[Tensor, "b 3 H W"]]:
        seen = features = self.blocks(self.stem(latent))  # (B, context_width, h, w)
        if self.refines:
            features = self.estimate(F.pixel_shuffle(self.enlarge(features), self.stride // self.cell))
            seen = self.norm(features)  # (B, estimate_width, H / 4, W / 4)
        linear = F.pixel_shuffle(self.linear(latent), self.stride)  # (B, 3, H, W)
        return features, (linear + F.pixel_shuffle(self.out(F.silu(seen)), self.cell)).float()

    @torch.no_grad()
    def start_from_synthesis(self, synthesis: Float[Tensor, "c patch"], mean: Float[Tensor, " patch"]) -> None:
        """Makes the initial estimate the linear decoding of a linear code: latent times matrix, plus mean."""
        assert self.linear.bias is not None
        self.linear.weight.zero_()
        self.linear.weight[:, :, 1, 1] = synthesis.T
        self.linear.bias.copy_(mean)


def _finer(stride: int) -> int:
    """How much finer the grid of 1/4 is than that of a latent."""
    if stride % _PATCH or stride == _PATCH:
        raise ConfigError(
            f"Decoder estimate_depth does not fit latents of side ratio {stride}, whose grid is no coarser multiple of "
            f"that of 1/{_PATCH}. Accepted: 8, 12, 16 and so on. Set estimate_depth to 0."
        )
    return stride // _PATCH


def _blocks(config: ConvDecoderConfig, width: int, depth: int) -> nn.ModuleList:
    return nn.ModuleList(ResidualBlock(width, embedding=config.embedding_width) for _ in range(depth))


def _resample(features: Tensor, from_stride: int, to_stride: int) -> Tensor:
    """Resamples features from one stride to another: means to a coarser grid, repeats to a finer one."""
    if to_stride >= from_stride:
        return down(features, to_stride // from_stride)
    return F.interpolate(features, scale_factor=float(from_stride // to_stride), mode="nearest")
