"""A tokenizer as an autoencoder of diffusers, for the `vae` of its pipelines.

Pipelines scale latents by factors that they read from its configuration (`factors`). A tokenizer that decodes latents
of a frozen encoder takes them raw, like the autoencoder that it replaces; others take their own.

The decoder draws noise. If a pipeline passes its generator, the noise comes from it; otherwise (SDXL, SD3, FLUX) each
image starts from the default seed, so that an image decodes the same alone and in a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import FrozenDict, register_to_config
from diffusers.models.autoencoders.vae import (
    AutoencoderMixin,
    DecoderOutput,
    DiagonalGaussianDistribution,
    IdentityDistribution,
)
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from jaxtyping import Float
from torch import Tensor

from stepladder.configs import structure, unstructure
from stepladder.encoders import FrozenEncoder
from stepladder.errors import ConfigError
from stepladder.integrations.diffusers.factors import Moments, config_like, factors, scale_of
from stepladder.layouts import GridLayout
from stepladder.nn.blocks import channels_last
from stepladder.pipelines import decodable, foreign_latents
from stepladder.tokenizer import Encoding, Tokenizer
from stepladder.tokenizer_config import TokenizerConfig

__all__ = ["AutoencoderStepladder", "ModelMixin", "autoencoder"]

_MAX_SEED = 2**63 - 1
_USUAL_TILE = 512


@dataclass
class EncoderOutput(BaseOutput):  # type: ignore[misc]
    """What `AutoencoderStepladder.encode` returns."""

    latent_dist: DiagonalGaussianDistribution | IdentityDistribution
    """With `mode()` and `sample(generator)`; both are the latent where the bottleneck is not variational."""


class AutoencoderStepladder(ModelMixin, AutoencoderMixin, ConfigMixin):  # type: ignore[misc]
    """A tokenizer with the methods and the configuration that pipelines expect of their `vae`."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, tokenizer_config: dict[str, Any], seed: int = 0, steps: int | None = None) -> None:
        """Builds one with fresh weights; `autoencoder` makes one of a trained tokenizer.

        Args:
            tokenizer_config: Plain data of a `TokenizerConfig`.
            seed: From which each image starts where a pipeline passes no generator.
            steps: Steps per stage; the tokenizer's own by default.

        Raises:
            ConfigError: If the configuration does not fit, or the latents are no grid.
        """
        super().__init__()
        config = structure(tokenizer_config, TokenizerConfig, where="Configuration of the autoencoder")
        if not isinstance(config.layout, GridLayout):
            raise ConfigError(
                f"Latents of {config.layout} do not fit a pipeline. Pipelines take grids (B, c, h, w). Use a model "
                "whose latent is a grid, for example photo."
            )
        if not 0 <= seed <= _MAX_SEED:
            raise ConfigError(f"Seed {seed} is outside [0, 2^63). Pass a whole number in that range.")
        self.tokenizer = Tokenizer(config)
        self.layout = config.layout
        self.scale = scale_of(config)
        self.bn = Moments(4 * self.layout.channels, self.scale)
        self.use_slicing = False
        self.tile = self.tokenizer.tile_side()
        self.use_tiling = self.tile > 0

    @property
    def config(self) -> FrozenDict:
        """What was passed to the constructor, and what pipelines read, which follows from it."""
        widths = [self.layout.channels] * self.layout.stride.bit_length()  # pipelines count them: f = 2 ** (len - 1)
        facts = {
            "in_channels": 3,
            "out_channels": 3,
            "latent_channels": self.layout.channels,
            "block_out_channels": widths,
            "encoder_block_out_channels": widths,
            "force_upcast": False,
        }
        return FrozenDict({**self._internal_dict, **facts, **factors(self.scale)})

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def encode(self, x: Float[Tensor, "b 3 H W"], return_dict: bool = True) -> EncoderOutput | tuple[Any]:
        """Encodes images in [-1, 1] to a distribution of latents, as `decode` takes them.

        Raises:
            CheckpointError: If the encoder is frozen, and not where the model says.
        """
        slices = x.split(1) if self.use_slicing else (x,)
        found = _distribution(self.tokenizer, [self.tokenizer.encode(each, tile=self._tile()) for each in slices])
        return EncoderOutput(latent_dist=found) if return_dict else (found,)

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def decode(
        self,
        z: Float[Tensor, "b c h w"],
        return_dict: bool = True,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> DecoderOutput | tuple[Float[Tensor, "b 3 H W"]]:
        """Decodes latents to images in [-1, 1].

        Args:
            z: Latents, of all that the image covers.
            return_dict: Whether to return an object with `.sample`, or a tuple.
            generator: Where the noise comes from: one for the batch, or one for each image; the seed by default.

        Raises:
            ConfigError: If the latents have another number of channels.
            ValueError: If they have another shape, hold NaN, or the number of generators does not fit.
        """
        self._check(z)
        seeds = self._seeds(z.shape[0], generator)
        size = 1 if self.use_slicing else max(1, z.shape[0])
        images = [
            self.tokenizer.decode(part, seeds=seeds[i * size :][:size], steps=self.config.steps, tile=self._tile())
            for i, part in enumerate(decodable(self.tokenizer, z).split(size))
        ]
        image = torch.cat(images).to(z.dtype)
        return DecoderOutput(sample=image) if return_dict else (image,)

    def forward(
        self,
        sample: Float[Tensor, "b 3 H W"],
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> DecoderOutput | tuple[Float[Tensor, "b 3 H W"]]:
        """Encodes and decodes."""
        found = self.encode(sample).latent_dist
        latent = found.sample(generator=generator) if sample_posterior else found.mode()
        return self.decode(latent, return_dict=return_dict, generator=generator)

    def enable_tiling(
        self, tile_sample_min_height: int | None = None, tile_sample_min_width: int | None = None
    ) -> None:
        """Works on longer sides than the smaller of the two in square tiles; by default, those of the tokenizer.

        It is on from the start where the tokenizer says so. Tiles bound memory and show nowhere.

        Raises:
            ConfigError: If the side does not fit the tokenizer, or its decoder takes no tiles.
        """
        sides = [side for side in (tile_sample_min_height, tile_sample_min_width) if side is not None]
        self.tile = self.tokenizer.tile_side(min(sides) if sides else self.tokenizer.config.tile or self._usual_tile())
        self.use_tiling = True

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As of every model of diffusers; `autoencoder` reads models of stepladder."""
        return channels_last(super().from_pretrained(*args, **kwargs))

    def _tile(self) -> int:
        return self.tile if self.use_tiling else 0

    def _usual_tile(self) -> int:
        """For a tokenizer whose configuration has none."""
        multiple = self.tokenizer.side_multiple
        return max(1, _USUAL_TILE // multiple) * multiple

    def _check(self, z: Tensor) -> None:
        """Says it in words of pipelines, before the tokenizer says it in its own."""
        if z.ndim != 4:
            raise ValueError(
                f"Latents of the pipeline have shape {tuple(z.shape)}. Accepted: (B, {self.layout.channels}, h, w). "
                "Unpack them, or add the dimension of the batch."
            )
        if z.shape[1] != self.layout.channels:
            raise ConfigError(
                f"Latents of the pipeline have {z.shape[1]} channels, and its autoencoder decodes {self.layout} only. "
                "Pass a model that was trained for the latents of this pipeline."
            )

    def _seeds(self, count: int, generator: torch.Generator | Sequence[torch.Generator] | None) -> list[int]:
        if generator is None:
            return [self.config.seed] * count
        each = [generator] * count if isinstance(generator, torch.Generator) else list(generator)
        return [int(torch.randint(_MAX_SEED, (), generator=one, device=one.device)) for one in each]


AutoencoderStepladder.__module__ = "stepladder.integrations.diffusers"
# What a saved pipeline names, where the class is looked for beside `ModelMixin`.


def autoencoder(
    model: str | Path | Tokenizer, *, like: Any = None, seed: int = 0, steps: int | None = None
) -> AutoencoderStepladder:
    """A tokenizer as the autoencoder of a pipeline.

    Args:
        model: A tokenizer, which is shared and not copied, or an embedded name, a folder or a hub id.
        like: For a model that decodes latents of another autoencoder and does not know its factors: that autoencoder,
            as the pipeline came with it, or the factors themselves (`PipelineScale`).
        seed: From which each image starts where a pipeline passes no generator.
        steps: Steps per stage; the tokenizer's own by default.

    Raises:
        CheckpointError: If there is no such model, or it is damaged.
        ConfigError: If its latents are no grid or not those of `like`, or the seed is out of range.
    """
    tokenizer = model if isinstance(model, Tokenizer) else Tokenizer.from_pretrained(model)
    config = tokenizer.config if like is None else config_like(tokenizer, like)
    with torch.device("meta"):
        found = AutoencoderStepladder(tokenizer_config=unstructure(config), seed=seed, steps=steps)
    found.tokenizer = tokenizer
    return found


def _distribution(
    tokenizer: Tokenizer, encodings: Sequence[Encoding]
) -> DiagonalGaussianDistribution | IdentityDistribution:
    """That of the latents, or the one that there is."""
    latent = torch.cat([encoding.latent for encoding in encodings])
    if isinstance(tokenizer.encoder, FrozenEncoder):
        return IdentityDistribution(foreign_latents(tokenizer, latent))
    posteriors = [encoding.posterior for encoding in encodings if encoding.posterior is not None]
    if not posteriors:
        return IdentityDistribution(latent)
    raw = torch.cat([posterior.log_variance for posterior in posteriors])
    return DiagonalGaussianDistribution(
        torch.cat([latent, 2 * tokenizer.bottleneck.scale.spread((0.5 * raw).exp()).log()], dim=1)
    )
