"""A convolutional denoiser whose cost is linear in pixels, for images of any size.

    latent  -> context: residual blocks on the grid of the latent, and where wanted on that of 1/4 after it, give
               features and an initial estimate (once a decode)
    x, base (at the scale of the stage) and features
            -> the network of the stage (`stage_network`) -> image

One network serves all stages, or the last ones have networks of their own. There are no positions and no statistics
over the image, so a network trained on crops decodes any size.

The base is the initial estimate with its low frequencies replaced by those of the previous clean image
(`base.Context`). With x-prediction, a network adds to the best linear estimate from base and noisy image
(`sampling.path.linear_estimate`), in units of its error; with last layers at zero it returns that estimate.
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
from stepladder.decoders.stage_network import PATCH, StageNetwork, StageNetworkConfig
from stepladder.errors import ConfigError
from stepladder.nn.blocks import ChannelNorm, ResidualBlock, zero_init
from stepladder.nn.embedding import ScalarEmbedding
from stepladder.sampling.denoiser import Denoised
from stepladder.sampling.path import linear_estimate
from stepladder.sampling.stages import Stage

__all__ = ["ConvDecoder", "ConvDecoderConfig"]


@dataclass(frozen=True, kw_only=True)
class ConvDecoderConfig:
    """Sizes of the convolutional denoiser."""

    kind: Literal["conv"] = "conv"
    """Which decoder."""
    prediction: PredictionKind = "clean"
    """What the network predicts: the clean image (x-prediction), or the velocity."""
    width: int = StageNetworkConfig.width
    """Channels on the grid of 1/4."""
    depth: int = StageNetworkConfig.depth
    """Residual blocks on the grid of 1/4 before the coarse grid, and as many after it."""
    coarse_width: int = StageNetworkConfig.coarse_width
    """Channels on the grid of 1/8."""
    coarse_depth: int = StageNetworkConfig.coarse_depth
    """Residual blocks on the grid of 1/8."""
    context_width: int = 128
    """Channels of the features of the latent."""
    context_depth: int = 2
    """Residual blocks on the grid of the latent."""
    estimate_width: int = 96
    """Channels on the grid of 1/4 where the initial estimate is made, if it is made there."""
    estimate_depth: int = 0
    """Residual blocks there; 0 makes the initial estimate on the grid of the latent."""
    head_width: int = StageNetworkConfig.head_width
    """Channels at full resolution."""
    embedding_width: int = 256
    """Width of the embedding of noise coordinate and scale."""
    hand_on_features: bool = False
    """Whether a stage also receives the features of the stage before, beside its clean image."""
    networks: list[StageNetworkConfig] | None = None
    """Sizes of the networks of the last stages, coarse first; the first serves all coarser stages, too. None for one
    network for all stages, of the sizes above."""

    def __post_init__(self) -> None:
        widths = ("context_width", "estimate_width", "embedding_width")
        check_between(self, 1, MAX_WIDTH, *widths, where="Decoder", usual="16 to 512")
        depths = ("context_depth", "estimate_depth")
        check_between(self, 0, MAX_DEPTH, *depths, where="Decoder", usual="2 to 8")
        if self.embedding_width % 2:
            raise ConfigError(f"Decoder embedding_width {self.embedding_width} is odd. Pass an even number.")
        self.sizes()

    def sizes(self) -> list[StageNetworkConfig]:
        """Sizes of all networks, coarse first."""
        if self.networks is not None:
            return self.networks
        return [
            StageNetworkConfig(
                width=self.width,
                depth=self.depth,
                coarse_width=self.coarse_width,
                coarse_depth=self.coarse_depth,
                head_width=self.head_width,
            )
        ]


class ConvDecoder(DecoderNetwork):
    """Noisy images (B, 3, h, w) to clean ones, given the context of a latent."""

    side_multiple = 2 * PATCH

    def __init__(
        self, config: ConvDecoderConfig, latent_channels: int, stride: int, num_stages: int | None = None
    ) -> None:
        """Builds the network.

        Args:
            config: Its sizes.
            latent_channels: c of the latent.
            stride: Side ratio of image and latent.
            num_stages: Stages of its ladder; None for any number.

        Raises:
            ConfigError: If the grid of the latent fits none of 1/4, or not those of the stages.
        """
        super().__init__()
        self.config = config
        self.stride = stride
        embedding = config.embedding_width
        self.reader = _LatentReader(config, latent_channels, stride)
        _check_grids(self.reader.cell, num_stages or 1)

        self.noise_embedding = ScalarEmbedding(embedding)
        self.scale_embedding = ScalarEmbedding(embedding, max_turns=4.0)
        self.embed = nn.Sequential(
            nn.Linear(embedding, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU()
        )

        sizes = config.sizes()
        alone = num_stages == len(sizes)  # the first network serves the first stage alone, and receives nothing
        received = [None if alone else sizes[0].width, *(size.width for size in sizes[:-1])]
        self.networks = nn.ModuleList(
            StageNetwork(
                size,
                embedding=embedding,
                context=self.reader.width,
                received=width if config.hand_on_features else None,
            )
            for size, width in zip(sizes, received, strict=True)
        )
        if config.networks is None:
            self.register_load_state_dict_pre_hook(_name_network)  # type: ignore[no-untyped-call]

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
        """The last convolution of each network."""
        return tuple(network.get_submodule("out") for network in self.networks)

    def start_from_synthesis(self, synthesis: Float[Tensor, "c n"], mean: Float[Tensor, " n"]) -> None:
        """Makes the initial estimate the linear decoding of a linear code: latent times matrix, plus mean."""
        self.reader.start_from_synthesis(synthesis, mean)

    @property
    def reach(self) -> int:
        """Receptive field of a prediction on each side, in pixels, at the stage where it is largest."""
        return max(size.reach for size in self.config.sizes())

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
        """Half of the receptive field: influence falls off like a bell curve, and is not visible beyond that.

        Reference: Understanding the Effective Receptive Field in Deep Convolutional Neural Networks (Luo et al., 2016),
        https://arxiv.org/abs/1701.04128; docs/large-images.md has it measured.
        """
        multiple = math.lcm(self.side_multiple, self.stride)
        return -(-self.reach // (2 * multiple)) * multiple

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
        network = self._network(stage)
        dtype = network.stem.weight.dtype  # times and images stay in float32 until here
        embedding = self.place(u, stage)
        seen = torch.cat([estimate.innovation, base], dim=1).to(dtype)  # (B, 6, h, w)
        received = previous.features[0] if previous is not None and previous.features else None
        features, residual = network(
            seen, embedding, context.features, received, cell=self.reader.cell, downscale=stage.downscale
        )
        if self.config.prediction == "clean":
            residual = torch.addcmul(estimate.clean, residual.float(), estimate.deviation)
        handed_on = (features,) if self.config.hand_on_features else ()
        return Denoised(clean_from_prediction(residual, self.config.prediction, x, u, stage), handed_on)

    def embedding(self, u: Float[Tensor, " b"], stage: Stage) -> Float[Tensor, "b e"]:
        """Embedding of noise coordinate and scale."""
        coordinate = stage.coordinate(u)
        scale = torch.full_like(coordinate, math.log2(stage.downscale) / 8)
        place = self.noise_embedding(coordinate) + self.scale_embedding(scale)
        embedding: Tensor = self.embed(place.to(self.embed[0].weight.dtype))
        return embedding

    def _network(self, stage: Stage) -> StageNetwork:
        before_the_last = stage.downscale.bit_length() - 1  # downscale is a power of two
        network = self.networks[max(0, len(self.networks) - 1 - before_the_last)]
        assert isinstance(network, StageNetwork)
        return network


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
            coarse, self.width, self.cell = self.width, config.estimate_width, PATCH
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


def _name_network(_: nn.Module, weights: dict[str, Tensor], prefix: str, *__: object) -> None:
    """Takes weights of one network for all stages that were saved before there could be several."""
    others = tuple(f"{prefix}{part}." for part in ("reader", "embed", "networks"))
    for name in [name for name in weights if name.startswith(prefix) and not name.startswith(others)]:
        weights[f"{prefix}networks.0.{name.removeprefix(prefix)}"] = weights.pop(name)


def _finer(stride: int) -> int:
    """How much finer the grid of 1/4 is than that of a latent."""
    if stride % PATCH or stride == PATCH:
        raise ConfigError(
            f"Decoder estimate_depth does not fit latents of side ratio {stride}, whose grid is no coarser multiple of "
            f"that of 1/{PATCH}. Accepted: 8, 12, 16 and so on. Set estimate_depth to 0."
        )
    return stride // PATCH


def _check_grids(cell: int, num_stages: int) -> None:
    """Checks that features of the latent can be resampled to the grid of 1/4 of each stage."""
    for grid in (PATCH << stage for stage in range(num_stages)):
        if cell % grid and grid % cell:
            raise ConfigError(
                f"Decoder cannot read latents of side ratio {cell} on {num_stages} stages: a stage has a grid of "
                f"1/{grid}, and neither is a multiple of the other. Accepted: powers of two, and with estimate_depth "
                f"all multiples of {PATCH}. Set estimate_depth, or fewer stages."
            )
