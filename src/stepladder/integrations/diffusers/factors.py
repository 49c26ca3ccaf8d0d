"""The factors by which pipelines scale latents, where they look for them.

Pipelines scale the raw latents z of their autoencoder to unit variance, and undo it before they decode:

    z' = scaling_factor (z - shift_factor)                               Stable Diffusion, SD3, FLUX.1, Sana
    z' = scaling_factor (z - latents_mean) / latents_std                 SDXL, where they are given
    z' = (z - running_mean) / sqrt(running_var + batch_norm_eps)         FLUX.2, on blocks of 2 x 2 cells

A tokenizer that decodes latents of a frozen encoder has the factors of that encoder (`encoders.scale.PipelineScale`)
and takes raw latents. Latents of other tokenizers have unit scale already, and their factors change nothing.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from stepladder.encoders import FrozenEncoderConfig
from stepladder.encoders.diffusers import pipeline_scale_of
from stepladder.encoders.scale import PipelineScale
from stepladder.errors import ConfigError
from stepladder.layouts import GridLayout
from stepladder.tokenizer import Tokenizer
from stepladder.tokenizer_config import TokenizerConfig

__all__ = ["Moments", "config_like", "factors", "scale_of"]

_CHANNELS_OF_SDXL, _PACKING_OF_FLUX2 = 4, 2


def scale_of(config: TokenizerConfig) -> PipelineScale:
    """The factors between latents of a pipeline and those that its autoencoder decodes.

    Raises:
        ConfigError: If the model does not know them, or no pipeline of images has such ones.
    """
    if not isinstance(config.encoder, FrozenEncoderConfig):
        return PipelineScale()
    if config.encoder.pipeline is None:
        raise ConfigError(
            f"How pipelines scale latents of '{config.encoder.source}' is not known to this model. Its pipeline's own "
            "autoencoder knows. Pass like=pipe.vae."
        )
    scale, channels = config.encoder.pipeline, config.latent_channels
    if scale.packing > _PACKING_OF_FLUX2 or (_each(scale) and scale.packing == 1 and channels != _CHANNELS_OF_SDXL):
        raise ConfigError(
            f"Pipelines of images have no factors for each of {channels} channels with packing {scale.packing}. "
            f"Accepted: packing {_PACKING_OF_FLUX2} (FLUX.2), {_CHANNELS_OF_SDXL} channels (SDXL), or one factor for "
            "all. Decode with Tokenizer.decode."
        )
    return scale


def config_like(tokenizer: Tokenizer, vae: Any) -> TokenizerConfig:
    """The configuration of a tokenizer, with factors that are given, or those of an autoencoder of diffusers.

    Raises:
        ConfigError: If the tokenizer does not decode latents of such an autoencoder.
    """
    config, layout, name = tokenizer.config, tokenizer.layout, type(vae).__name__
    if not isinstance(config.encoder, FrozenEncoderConfig):
        raise ConfigError(
            f"A model with an encoder of its own does not decode latents of the {name} of a pipeline. Accepted: a "
            "model that was trained on them. Leave like out only if the pipeline makes latents of this model."
        )
    if isinstance(vae, PipelineScale):
        return replace(config, encoder=replace(config.encoder, pipeline=vae))
    widths = vae.config.get("block_out_channels") or vae.config.get("encoder_block_out_channels") or ()
    found = GridLayout(vae.config.get("latent_channels", 0), 2 ** (len(widths) - 1) if widths else 0)
    if found != layout:
        raise ConfigError(
            f"Latents of the {name} are {found}, and the model decodes {layout}. Accepted: an autoencoder with the "
            "same channels and side ratio. Pass a model that was trained on its latents."
        )
    return replace(config, encoder=replace(config.encoder, pipeline=pipeline_scale_of(vae)))


def factors(scale: PipelineScale) -> dict[str, Any]:
    """What pipelines read from the configuration of an autoencoder."""
    scale = scale if scale.packing == 1 else PipelineScale()
    each = _CHANNELS_OF_SDXL if _each(scale) else 0
    return {
        "scaling_factor": 1.0 if each else 1 / scale.factor[0],
        "shift_factor": 0.0 if each else scale.offset[0],
        "latents_mean": _wide(scale.offset, each) if each else None,
        "latents_std": _wide(scale.factor, each) if each else None,
        "batch_norm_eps": 0.0,
    }


class Moments(nn.Module):
    """The batch norm of FLUX.2's autoencoder, as far as its pipelines look at it. It follows from the configuration."""

    def __init__(self, channels: int, scale: PipelineScale) -> None:
        super().__init__()
        scale = scale if scale.packing == _PACKING_OF_FLUX2 else PipelineScale()
        for name, values in (("running_mean", scale.offset), ("running_var", [value**2 for value in scale.factor])):
            self.register_buffer(name, torch.tensor(_wide(values, channels), device="cpu"), persistent=False)


def _each(scale: PipelineScale) -> bool:
    """Whether channels have factors of their own."""
    return len(scale.offset) > 1 or len(scale.factor) > 1


def _wide(values: list[float], channels: int) -> list[float]:
    """One number for each channel."""
    return list(values) if len(values) > 1 else values * channels
