"""Pipelines of diffusers with tiny networks and fresh weights: real ones, in all but size.

Prompts are embeddings, so that no text encoder is needed. What matters here is what a pipeline does with its `vae`.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import diffusers
import torch

from stepladder.encoders import DiffusersEncoderConfig, EncoderConfig
from stepladder.encoders.diffusers import pipeline_scale_of
from stepladder.nn.blocks import channels_last
from stepladder.presets import tiny
from stepladder.tokenizer import Tokenizer

SIDE = 64
_TEXT, _POOLED = 16, 32


def tokenizer(channels: int, stride: int, encoder: EncoderConfig | None = None) -> Tokenizer:
    """A tokenizer of a layout, whose decoder adds something at every stage."""
    config = tiny()
    encoder = encoder or replace(config.encoder, stride=stride)
    config = replace(config, latent_channels=channels, encoder=encoder, steps_per_stage=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = Tokenizer(config)
        for layer in found.decoder.network.output_layers:
            torch.nn.init.normal_(layer.weight, std=0.05)
    return channels_last(found).eval().requires_grad_(False)


def decoder_of(autoencoder: Any, channels: int, stride: int, *, knows: bool = True) -> Tokenizer:
    """A tokenizer that decodes latents of an autoencoder of diffusers, which have some mean and deviation."""
    scale = pipeline_scale_of(autoencoder) if knows else None
    encoder = DiffusersEncoderConfig(source="owner/name", stride=stride, pipeline=scale)
    found = tokenizer(channels, stride, encoder)
    drawn = torch.Generator().manual_seed(2)
    found.bottleneck.scale.mean.copy_(torch.randn(channels, generator=drawn))
    found.bottleneck.scale.variance.copy_(torch.rand(channels, generator=drawn) + 0.5)
    return found


def stable_diffusion(vae: Any) -> Any:
    return diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        unet=_unet(vae, cross_attention_dim=_TEXT),
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl(vae: Any) -> Any:
    return diffusers.StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=_unet(
            vae,
            cross_attention_dim=_TEXT,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=_POOLED + 6 * 8,
        ),
        scheduler=diffusers.EulerDiscreteScheduler(timestep_spacing="trailing"),
        add_watermarker=False,
    )


def stable_diffusion_3(vae: Any) -> Any:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=SIDE // 8,
        patch_size=2,
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=_TEXT,
        caption_projection_dim=16,
        pooled_projection_dim=_POOLED,
        pos_embed_max_size=16,
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        text_encoder_3=None,
        tokenizer_3=None,
    )


def flux(vae: Any) -> Any:
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=4 * vae.config.latent_channels,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=_TEXT,
        pooled_projection_dim=_POOLED,
        axes_dims_rope=(4, 6, 6),
    )
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=transformer,
    )


def flux2(vae: Any) -> Any:
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=4 * vae.config.latent_channels,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=_TEXT,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
    )
    return diffusers.Flux2Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
    )


def sana(vae: Any) -> Any:
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=_TEXT,
        sample_size=2,
    )
    return diffusers.SanaPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=vae,
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )


PIPELINES: dict[str, tuple[Callable[[Any], Any], int, int]] = {
    "stable_diffusion": (stable_diffusion, 4, 8),
    "stable_diffusion_xl": (stable_diffusion_xl, 4, 8),
    "stable_diffusion_3": (stable_diffusion_3, 16, 8),
    "flux": (flux, 16, 8),
    "flux2": (flux2, 32, 8),
    "sana": (sana, 32, 32),
}
"""For each: how it is built, and c and f of the latents that its kind has."""


def build(name: str, vae: Any) -> Any:
    """A pipeline around an autoencoder, with the same weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = PIPELINES[name][0](vae)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(pipe: Any, *, seed: int = 0, dtype: torch.dtype = torch.float32, **more: Any) -> Any:
    """Runs a pipeline for two steps; images are a tensor in [0, 1] unless `output_type` says otherwise."""
    drawn = torch.Generator().manual_seed(1)
    embeds = torch.randn(1, 6, _TEXT, generator=drawn).to(dtype)
    pooled = torch.randn(1, _POOLED, generator=drawn).to(dtype)
    words: dict[str, Any] = {"prompt_embeds": embeds}
    match type(pipe).__name__:
        case "StableDiffusionPipeline":
            words |= {"negative_prompt_embeds": -embeds}
        case "StableDiffusionXLPipeline" | "StableDiffusion3Pipeline":
            words |= {"negative_prompt_embeds": -embeds, "pooled_prompt_embeds": pooled}
            words |= {"negative_pooled_prompt_embeds": -pooled}
        case "FluxPipeline":
            words |= {"pooled_prompt_embeds": pooled}
        case "SanaPipeline":
            mask = torch.ones(1, 6, dtype=torch.int64)
            words |= {"prompt_attention_mask": mask, "negative_prompt_embeds": -embeds}
            words |= {"negative_prompt_attention_mask": mask, "use_resolution_binning": False, "negative_prompt": None}
    words |= {"height": SIDE, "width": SIDE, "num_inference_steps": 2, "output_type": "pt"}
    return pipe(**words | {"generator": torch.Generator().manual_seed(seed)} | more).images


def noise(pipe: Any) -> torch.Tensor:
    """Where a pipeline starts, in the form in which it takes it."""
    layout = pipe.vae.layout
    drawn = torch.randn(1, *layout.shape((SIDE, SIDE)), generator=torch.Generator().manual_seed(3))
    if "Flux" not in type(pipe).__name__:
        return drawn
    packed = torch.nn.functional.pixel_unshuffle(drawn, 2)
    return packed if "Flux2" in type(pipe).__name__ else packed.flatten(2).mT


def grid(latent: torch.Tensor) -> torch.Tensor:
    """A latent of square images as a pipeline returns it, unpacked if it is."""
    if latent.ndim == 4:
        return latent
    side = int(latent.shape[1] ** 0.5)
    blocks = latent.reshape(1, side, side, -1, 2, 2)  # (B, h/2, w/2, c, 2, 2), as FLUX packs them
    return blocks.permute(0, 3, 1, 4, 2, 5).reshape(1, -1, 2 * side, 2 * side)


def _unet(vae: Any, **more: Any) -> Any:
    return diffusers.UNet2DConditionModel(
        sample_size=SIDE // 8,
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        **more,
    )
