"""Encoders of the autoencoders of diffusers: whatever has `encode` and `config`, and takes images (B, 3, H, W).

Raw latents are those that `decode` of the autoencoder takes. Pipelines scale them by factors read from the autoencoder
(`PipelineScale`):

    AutoencoderKL and others     scaling_factor, shift_factor, latents_mean and latents_std of its config
    AutoencoderKLFlux2           cells of 2 x 2 as channels, then its batch norm without affine part

Weights are read only from safetensors files, and the class is one of diffusers itself: files cannot run code.
"""

import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from stepladder.encoders.scale import PipelineScale
from stepladder.errors import CheckpointError, ImageError, MissingDependencyError, brief
from stepladder.memory import is_out_of_memory
from stepladder.models import commit_of
from stepladder.sampling.randomness import generators, normal

if TYPE_CHECKING:
    from stepladder.encoders.frozen import DiffusersEncoderConfig

__all__ = ["open_diffusers", "pipeline_scale_of"]


class _DiffusersEncoder:
    """An autoencoder as a function from images to raw latents; it follows the device of the images."""

    def __init__(self, model: Any, posterior: str, commit: str | None) -> None:
        self._model = model
        self._sample = posterior == "sample"
        self.pipeline_scale: PipelineScale | None = pipeline_scale_of(model)
        self.commit = commit

    def __call__(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        if self._model.device != images.device:
            self._model.to(images.device)
        try:
            found = self._model.encode(images)
        except Exception as error:  # code of others, which may raise any kind
            if is_out_of_memory(error):
                raise
            raise ImageError(
                f"The encoder {type(self._model).__name__} takes no images of {images.shape[3]} x {images.shape[2]}: "
                f"{brief(error)}. Crop to a size that it takes, or pass another encoder."
            ) from error
        distribution = getattr(found, "latent_dist", None)
        if distribution is None:
            latent: Tensor = found.latent if hasattr(found, "latent") else found.latents
            return latent
        mean: Tensor = distribution.mode()
        if not self._sample:
            return mean
        noise = torch.cat([normal((1, *mean.shape[1:]), draw) for draw in generators(_seeds(images), "cpu")])
        return mean + distribution.std * noise.to(mean)


def open_diffusers(config: "DiffusersEncoderConfig", *, known_as: str) -> _DiffusersEncoder:
    """Loads the autoencoder of a configuration and discards its decoder.

    Args:
        config: Says where it is.
        known_as: Name of the encoder in the model, for messages.

    Raises:
        CheckpointError: If it is not there, cannot be loaded, or is no autoencoder of images.
        MissingDependencyError: If diffusers is not installed.
    """
    try:
        from diffusers import AutoModel
    except (ImportError, RuntimeError) as error:  # it imports its parts late, and then raises the latter
        raise MissingDependencyError(
            f"Encoder {config.source} needs the package diffusers, which cannot be imported ({brief(error)}). It "
            "comes with the extra 'diffusers'. Run pip install 'stepladder[diffusers]'."
        ) from error
    local = Path(config.source).expanduser()
    source = str(local) if local.is_dir() else config.source
    if source.count("/") != 1 and not local.is_dir():  # no hub id: a model keeps the name of a folder alone
        raise CheckpointError(
            f"Encoder '{config.source}' is not here, and the model holds a decoder alone. Its latents are those of "
            f"'{known_as}'. Pass the folder or hub id of that autoencoder with --encoder PATH, in the "
            "configuration of the run, or to tokenizer.encoder.open."
        )
    try:
        options = {"subfolder": config.subfolder, "revision": config.revision, "use_safetensors": True}
        model = AutoModel.from_pretrained(source, **{key: value for key, value in options.items() if value is not None})
    except Exception as error:  # the hub client, diffusers and a damaged folder raise many kinds
        raise CheckpointError(
            f"Encoder '{config.source}' cannot be loaded by diffusers: {brief(error)}. The latents of this model "
            f"are those of '{known_as}'. Pass its folder or hub id with --encoder PATH, in the "
            "configuration of the run, or to tokenizer.encoder.open."
        ) from error
    if not hasattr(model, "encode"):
        raise CheckpointError(
            f"'{config.source}' holds a {type(model).__name__}, which encodes nothing. Accepted: autoencoders of "
            "images. Name the folder of one, or set tokenizer.encoder.subfolder, often to 'vae'."
        )
    model.decoder = None
    commit = None if local.is_dir() else _commit(config)
    return _DiffusersEncoder(model.eval().requires_grad_(False).float(), config.posterior, commit)


def pipeline_scale_of(model: Any) -> PipelineScale:
    """The scale of latents in pipelines of diffusers."""
    norm = getattr(model, "bn", None)
    if norm is not None:
        deviation = torch.sqrt(norm.running_var + model.config.batch_norm_eps)
        return PipelineScale(
            offset=norm.running_mean.tolist(), factor=deviation.tolist(), packing=model.config.patch_size[0]
        )
    config = model.config
    factor = 1 / (config.get("scaling_factor") or 1.0)
    mean, deviation = config.get("latents_mean"), config.get("latents_std")
    if mean is not None and deviation is not None:
        return PipelineScale(offset=list(mean), factor=[value * factor for value in deviation])
    return PipelineScale(offset=[config.get("shift_factor") or 0.0], factor=[factor])


def _commit(config: "DiffusersEncoderConfig") -> str | None:
    """That of which the hub client has just put the files of an autoencoder into its cache."""
    from huggingface_hub import try_to_load_from_cache

    name = f"{config.subfolder}/config.json" if config.subfolder else "config.json"
    found = try_to_load_from_cache(config.source, name, revision=config.revision)
    return commit_of(Path(found)) if isinstance(found, str) else None


def _seeds(images: Tensor) -> list[int]:
    """One seed per image, derived from its values, so that its latent is the same alone and in a batch."""
    return [zlib.crc32(image.cpu().numpy().tobytes()) for image in images]
