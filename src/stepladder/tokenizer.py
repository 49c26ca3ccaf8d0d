"""The tokenizer: what users hold.

    images -> encoder -> bottleneck -> latent
    latent -> decoder, up the ladder -> images

Sides that do not fit are padded and cropped back: the image to a multiple of f before encoding, the latent to what the
ladder needs before decoding. A latent therefore does not depend on the ladder that will decode it, and models that
share an encoder share latents.
"""

import copy
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.fx.experimental._config
from jaxtyping import Float, Int
from torch import Tensor

from stepladder.bottlenecks import BottleneckOutput, GaussianPosterior, build_bottleneck
from stepladder.checkpoints import weights_digest
from stepladder.configs import unstructure
from stepladder.decoders import LadderDecoder, build_network
from stepladder.encoders import FrozenEncoder, build_encoder, features
from stepladder.encoders.scale import check_scale
from stepladder.errors import ConfigError
from stepladder.images import check_images, crop_to
from stepladder.layouts import Layout, check_finite, check_indices, check_ladder
from stepladder.memory import give_back_freed_memory
from stepladder.pretrained import Pretrained
from stepladder.sampling.grids import steps_per_stage, time_grids
from stepladder.sampling.guidance import GuidanceConfig
from stepladder.sampling.randomness import NoiseKind, noise_source
from stepladder.sampling.sampler import sample
from stepladder.sampling.stages import StageSchedule
from stepladder.sampling.steps import EULER, SamplerConfig, SamplerKind, find_sampler
from stepladder.tokenizer_config import TokenizerConfig

__all__ = ["Encoding", "Tokenizer"]

_MOST_GRAPHS = 256
"""Of a compiled network: one for each stage, and without free sizes for each of them."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """What `Tokenizer.encode` returns."""

    latent: Float[Tensor, "b ..."]
    """Latent of unit scale: a grid (B, c, h, w), or tokens (B, N, D)."""
    size: tuple[int, int]
    """(H, W) of the images, to which a decode crops back."""
    indices: Int[Tensor, "b ..."] | None = None
    """Code indices, of a quantised bottleneck."""
    posterior: GaussianPosterior | None = None
    """Distribution of the latent, of a variational bottleneck."""


class Tokenizer(Pretrained):
    """Encodes images to latents, and decodes latents up a ladder of scales."""

    def __init__(self, config: TokenizerConfig) -> None:
        """Builds a tokenizer with fresh weights; `from_pretrained` loads trained ones."""
        super().__init__()
        self.config = config
        self._fingerprint: str | None = None  # of weights that were rounded since
        self.register_load_state_dict_post_hook(_forget_fingerprint)  # type: ignore[no-untyped-call]
        self.bottleneck = build_bottleneck(config.bottleneck, config.latent_channels)
        self.encoder = build_encoder(config.encoder, self.bottleneck.in_channels)
        self.decoder = LadderDecoder(
            build_network(config.decoder, config.layout, config.ladder.num_stages), config.ladder.schedule()
        )
        if self.decoder.network.tile_margin is not None:
            self._check_tile(config.tile)
        check_ladder(self.layout, self.decoder.side_multiple, self.schedule.num_stages)
        self.decoder.check_guidance(config.guidance)

    @property
    def schedule(self) -> StageSchedule:
        """The ladder."""
        return self.decoder.schedule

    @property
    def steps_per_stage(self) -> int:
        """Default number of steps in each stage."""
        return self.config.steps_per_stage

    @property
    def layout(self) -> Layout:
        """How latents are laid out, and which images fit."""
        return self.config.layout

    @property
    def codebook_size(self) -> int | None:
        """Number of codes of a quantised latent; None of a continuous one."""
        return self.bottleneck.codebook_size

    @property
    def side_multiple(self) -> int:
        """Images whose sides are multiples of this go through encoder and ladder without padding."""
        return math.lcm(self.decoder.side_multiple, self.layout.side_multiple)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the networks, to which images and latents are converted."""
        return next(self.parameters()).dtype

    def to_precision(self, dtype: torch.dtype) -> Self:
        """Lets the networks compute in `dtype`, in place; noise, scale of the latent and fingerprint stay the same."""
        if dtype != self.dtype:
            self._fingerprint = self.fingerprint()
        self.encoder.to(dtype)
        self.decoder.to(dtype)
        return self

    def compile_decoder(self, *, any_size: bool = True) -> Self:
        """Compiles the decoder's network, in place, when it is first run: minutes for a large one.

        Each stage is compiled once for images of all sizes and batches, and once or twice more for an image alone.
        Without `any_size`, it is compiled for each size and batch that comes, and may be faster.
        """
        if any_size:
            torch.fx.experimental._config.use_duck_shape = False  # else a batch of 3 means: as many as channels
        self.decoder.network.compile(
            fullgraph=True, dynamic=any_size, recompile_limit=_MOST_GRAPHS, isolate_recompiles=True
        )
        return self

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "b 3 H W"], *, tile: int | None = None) -> Encoding:
        """Encodes images in [-1, 1]: of any size for grid latents, of one size for tokens.

        Longer sides than `tile` are encoded in tiles, to the same latent; 0 for none, the tokenizer's own by default.
        Raises `ValueError` for what is no such tensor or a tile that does not fit, `ImageError` for another size.
        """
        check_images(images)
        fitting = self.layout.fit(images if isinstance(self.encoder, FrozenEncoder) else images.to(self.dtype))
        side = self.tile_side(tile, (images.shape[2], images.shape[3]))
        out: BottleneckOutput = self.bottleneck(features(self.encoder, fitting, tile=side))
        return Encoding(
            latent=out.latent, size=(images.shape[2], images.shape[3]), indices=out.indices, posterior=out.posterior
        )

    def decode(
        self,
        code: Encoding | Float[Tensor, "b ..."],
        *,
        seeds: Sequence[int] | None = None,
        steps: int | Sequence[int] | None = None,
        size: tuple[int, int] | None = None,
        tile: int | None = None,
        guidance: GuidanceConfig | float | None = None,
        sampler: SamplerConfig | SamplerKind = EULER,
        noise: NoiseKind = "drawn",
    ) -> Float[Tensor, "b 3 H W"]:
        """Decodes to images in [-1, 1].

        Args:
            code: From `encode`, or a bare latent: (B, c, h, w) or (B, N, D).
            seeds: One for each image: alone or in a batch, the same image. By default 0, 1, 2, ...
            steps: Steps per stage, one number or one for each stage; the tokenizer's own by default.
            size: (H, W) to crop to; by default the size of the encoded images, or all that the latent covers.
            tile: Side of the tiles for stages with a longer side, 0 for none; the tokenizer's own by default. Tiles
                bound memory and are not visible in the image. The first stage of a ladder is never tiled.
            guidance: On the latent; a number changes the scale alone. The tokenizer's own by default.
            sampler: Kind of steps, texture, and time grid; or the kind alone.
            noise: "drawn" from the seeds, or "zero", which needs none and makes every decode of a latent the same.

        Raises:
            ValueError: If the latent, the seeds, the steps, the size, the tile, the guidance or the sampler do not
                fit, or the latent is not finite.
        """
        *_, image = self.decode_progressively(
            code, seeds=seeds, steps=steps, size=size, tile=tile, guidance=guidance, sampler=sampler, noise=noise
        )
        return image

    def decode_progressively(
        self,
        code: Encoding | Float[Tensor, "b ..."],
        *,
        seeds: Sequence[int] | None = None,
        steps: int | Sequence[int] | None = None,
        size: tuple[int, int] | None = None,
        tile: int | None = None,
        guidance: GuidanceConfig | float | None = None,
        sampler: SamplerConfig | SamplerKind = EULER,
        noise: NoiseKind = "drawn",
    ) -> Iterator[Float[Tensor, "b 3 h w"]]:
        """As `decode`, and yields one image for each stage, coarse first: sides H / 2^(K-1), ..., H / 2, H.

        Between two images, gradients are as the caller has them: each stage turns them off for itself alone.
        """
        latent = code.latent if isinstance(code, Encoding) else code
        sampler = find_sampler(sampler, noise)
        self.layout.check(latent)
        check_finite(latent)
        if isinstance(self.encoder, FrozenEncoder):
            check_scale(latent, self.bottleneck.scale.mean, self.bottleneck.scale.variance)
        full = self.layout.covers(latent)
        size = size or (code.size if isinstance(code, Encoding) else full)
        if not (0 < size[0] <= full[0] and 0 < size[1] <= full[1]):
            raise ValueError(f"Size {size} does not fit a latent that covers {full}. Pass a size up to that.")
        counts = steps_per_stage(self.schedule, self.steps_per_stage if steps is None else steps)
        self._check_fused(counts)
        side = self.tile_side(tile, full)
        with torch.no_grad():
            padded = self.layout.fit_latent(latent.to(self.dtype), self.decoder.side_multiple)
            covered = self.layout.covers(padded)
            large = max(covered) > side > 0
            denoiser = self.decoder.bind(padded, tile=side if large else 0, guidance=self.guidance(guidance))
            ends = sample(
                denoiser,
                self.schedule,
                size=covered,
                generators=noise_source(noise, seeds, latent.shape[0], latent.device),
                grids=time_grids(self.schedule, counts, sampler.shifts(self.schedule)),
                sampler=sampler,
                batch=latent.shape[0],
            )
        for stage in self.schedule.stages:
            with torch.no_grad():  # not around the yield, nor as a decorator: a wrapped generator is not seen as one
                clean = next(ends).clean
                if large:  # the blocks of a whole image do not fit where those of tiles have been
                    give_back_freed_memory()
                scale = stage.downscale
                image = crop_to(clean, (-(-size[0] // scale), -(-size[1] // scale))).clamp(-1, 1)
            del clean
            yield image
            del image  # nor is it held while the next stage runs

    def fuse(self) -> Self:
        """A copy for decodes of one step in each stage: what depends on time alone is computed once, here.

        It decodes to the same images, up to rounding, and takes no other number of steps.
        """
        fused = copy.deepcopy(self)
        fused.decoder.network.fuse(self.schedule)
        return fused.requires_grad_(False)

    def latent_from_indices(self, indices: Int[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """The latent of code indices, exactly as `encode` gave it beside them.

        Raises:
            ValueError: If the bottleneck is not quantised, or the indices have another dtype, shape or range.
        """
        size = self.codebook_size
        if size is None:
            raise ValueError(
                f"Bottleneck '{self.config.bottleneck.kind}' has no code indices. Decode its latents as they are."
            )
        check_indices(self.layout, indices, size)
        latent = self.bottleneck.from_indices(indices.long())
        self.layout.check(latent)
        return latent

    def tile_side(self, tile: int | None = None, size: tuple[int, int] = (0, 0)) -> int:
        """Side of the tiles with which a call that is asked for `tile` works; 0 for none.

        By default it is that of the configuration, and half of it for images (H, W) of over 4 such tiles a side, which
        leave less room: whole images, at every stage, are then most of what memory holds.

        Raises:
            ConfigError: If `tile` is negative or no multiple of what the decoder needs, or the decoder takes no tiles.
        """
        tileable = self.decoder.network.tile_margin is not None
        if tile is None:
            side = self.config.tile if tileable else 0
            halved = max(size) > 4 * side and side % (2 * self.side_multiple) == 0
            return side // 2 if halved else side
        self._check_tile(tile)
        if tile and not tileable:
            raise ConfigError(f"Tile side {tile} does not fit a decoder that looks at the whole image. Leave it out.")
        return tile

    def guidance(self, guidance: GuidanceConfig | float | None = None) -> GuidanceConfig:
        """The guidance of a decode that is asked for `guidance`; a number changes the scale alone.

        Raises:
            ConfigError: If it is out of range, or the decoder cannot be guided so.
        """
        match guidance:
            case None:
                found = self.config.guidance
            case GuidanceConfig():
                found = guidance
            case scale:
                found = replace(self.config.guidance, scale=float(scale))
        self.decoder.check_guidance(found)
        return found

    def network_evaluations(
        self,
        steps: int | Sequence[int] | None = None,
        guidance: GuidanceConfig | float | None = None,
        sampler: SamplerConfig = EULER,
    ) -> int:
        """Network evaluations of such a decode; `steps` and `guidance` are the tokenizer's own by default."""
        taken = self.steps_per_stage if steps is None else steps
        return sum(self.decoder.evaluations(taken, self.guidance(guidance), sampler))

    def fingerprint(self) -> str:
        """Short hash of encoder and bottleneck: latents fit every tokenizer with the same one."""
        if self._fingerprint is not None:
            return self._fingerprint
        frozen = [self.encoder.identity()] if isinstance(self.encoder, FrozenEncoder) else []
        quantised = self.codebook_size is not None  # levels are no weights
        levels = [json.dumps(unstructure(self.config.bottleneck), sort_keys=True)] if quantised else []
        return weights_digest([*frozen, *levels], [self.encoder, self.bottleneck])

    def weights(self) -> dict[str, Tensor]:
        """What `save_pretrained` writes.

        Raises:
            ValueError: If the tokenizer is fused.
        """
        if self.decoder.network.fused:
            raise ValueError("A fused tokenizer cannot be saved: weights were dropped. Save the one that it came from.")
        return self.state_dict()

    def _check_fused(self, steps: Sequence[int]) -> None:
        if self.decoder.network.fused and set(steps) != {1}:
            raise ValueError(
                f"Steps {list(steps)} do not fit a fused tokenizer, which takes one in each stage. Pass steps=1, or "
                "decode with the tokenizer that it came from."
            )

    def _check_tile(self, tile: int) -> None:
        multiple = self.side_multiple
        if tile < 0 or tile % multiple:
            near = max(1, round(tile / multiple)) * multiple
            raise ConfigError(f"Tile side {tile} is not 0 or a multiple of {multiple}. Pass one, for example {near}.")


def _forget_fingerprint(tokenizer: Tokenizer, _: object) -> None:
    tokenizer._fingerprint = None
