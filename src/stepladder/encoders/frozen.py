"""Frozen encoders of other libraries: a model decodes their latents, and holds none of their weights.

    images -> frozen encoder -> raw latent (B, c, H/f, W/f) -> bottleneck: unit scale, by measured statistics

Where it comes from and what its fingerprint is stands in the configuration; it is opened when an image is encoded for
the first time, or by `FrozenEncoder.open`. Decoding never opens it.

    onnx     a file of ONNX that maps `image` to a latent
    diffusers     an autoencoder of the library diffusers: a hub id or a folder
    files    none: latents come from files, made by an encoder that is not here
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepladder.configs import check_between
from stepladder.encoders.fingerprint import TOLERANCE, distance, fixed_image, take_fingerprint
from stepladder.encoders.scale import LatentSpace, PipelineScale
from stepladder.errors import CheckpointError, ConfigError

__all__ = [
    "DiffusersEncoderConfig",
    "FrozenEncoder",
    "FrozenEncoderConfig",
    "LatentFilesConfig",
    "OnnxEncoderConfig",
    "open_encoders",
    "same_encoder",
]

_MAX_STRIDE = 128


@dataclass(frozen=True, kw_only=True)
class OnnxEncoderConfig:
    """An encoder in an ONNX file: images (B, 3, H, W) to raw latents (B, c, H/f, W/f)."""

    kind: Literal["onnx"] = "onnx"
    """Which encoder."""
    source: str
    """Where it is: a file, or `owner/name/file.onnx` on the hub. A model keeps the name of the file alone."""
    revision: str | None = None
    """Branch, tag or commit of a file on the hub. A model keeps the commit."""
    stride: int = 8
    """f, image side over latent side."""
    image_range: tuple[float, float] = (-1.0, 1.0)
    """Values of black and white that it takes."""
    fingerprint: list[float] | None = None
    """Its raw latent of a fixed image, in the middle; measured when training starts."""
    pipeline: PipelineScale | None = None
    """How diffusion pipelines scale its raw latents; None if unknown."""

    def __post_init__(self) -> None:
        check_between(self, 1, _MAX_STRIDE, "stride", where="Encoder", usual="8, 16 and 32")
        black, white = self.image_range
        if not black < white:
            raise ConfigError(
                f"Encoder image_range {list(self.image_range)} does not rise. Write black and white, [0, 1] or [-1, 1]."
            )


@dataclass(frozen=True, kw_only=True)
class DiffusersEncoderConfig:
    """The encoder of an autoencoder of diffusers; its raw latents are what `decode` of that autoencoder takes."""

    kind: Literal["diffusers"] = "diffusers"
    """Which encoder."""
    source: str
    """Where it is: a hub id or a folder. A model keeps the name of a folder alone."""
    subfolder: str | None = None
    """Folder inside it, for example `vae`."""
    revision: str | None = None
    """Branch, tag or commit of a hub id. A model keeps the commit."""
    stride: int = 8
    """f, image side over latent side."""
    posterior: Literal["mean", "sample"] = "mean"
    """What is taken where it gives a distribution; `sample` draws with a seed that depends on the image alone."""
    fingerprint: list[float] | None = None
    """Its raw latent of a fixed image, in the middle; measured when training starts."""
    pipeline: PipelineScale | None = None
    """How diffusion pipelines scale its raw latents; read from the autoencoder when training starts."""

    def __post_init__(self) -> None:
        check_between(self, 1, _MAX_STRIDE, "stride", where="Encoder", usual="8, 16 and 32")


@dataclass(frozen=True, kw_only=True)
class LatentFilesConfig:
    """No encoder: latents stand beside their images in files, and come from an encoder that is not here."""

    kind: Literal["files"] = "files"
    """Which encoder."""
    source: str
    """What made the latents, in words."""
    stride: int = 8
    """f, image side over latent side."""
    fingerprint: list[float] | None = None
    """Its raw latent of a fixed image, in the middle, where the files say it."""
    pipeline: PipelineScale | None = None
    """How diffusion pipelines scale its raw latents; None if unknown."""

    def __post_init__(self) -> None:
        check_between(self, 1, _MAX_STRIDE, "stride", where="Encoder", usual="8, 16 and 32")


FrozenEncoderConfig: TypeAlias = OnnxEncoderConfig | DiffusersEncoderConfig | LatentFilesConfig


class Encode(Protocol):
    """An encoder that is open: images in [-1, 1], of sides that fit, to raw latents on the same device."""

    pipeline_scale: PipelineScale | None
    """How pipelines scale them, where it says so."""
    commit: str | None
    """Of the hub, where it was fetched from there."""

    def __call__(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]: ...


class FrozenEncoder(nn.Module):
    """Images (B, 3, H, W) to raw latents, by an encoder that is no part of the model: it has no weights here."""

    linear = None
    reach = None
    """It gets whole images."""

    def __init__(self, config: FrozenEncoderConfig, channels: int) -> None:
        super().__init__()
        self.config = config
        self.channels = channels
        self._opened: _Opened | None = None

    def identity(self) -> str:
        """What the hash of a model says of its encoder: the fingerprint, or where there is none its name."""
        return json.dumps(self.config.fingerprint or _name(self.config.source))

    @property
    def is_open(self) -> bool:
        """Whether images can be encoded without opening anything."""
        return self._opened is not None

    def open(self, source: str | None = None) -> None:
        """Opens the encoder, and checks that it is the one that the configuration means.

        Args:
            source: Where it is; by default where the configuration says.

        Raises:
            CheckpointError: If it is not there, cannot be read, or is another one.
            ConfigError: If its latents have another shape than the configuration says.
            MissingDependencyError: If the package that runs it is not installed.
        """
        config, expected = self._found_at(source), self.config.fingerprint
        encode = _open(config, known_as=self.config.source)
        shown = config.source
        shape = tuple(encode(fixed_image()).shape[1:])
        side = fixed_image().shape[-1] // config.stride
        if shape != (self.channels, side, side):
            found = "x".join(map(str, shape))
            if expected is not None:
                raise CheckpointError(
                    f"Encoder {shown} is another one than that of the model: its latent of the test image is {found}, "
                    f"and not {self.channels}x{side}x{side}. Accepted: f{config.stride}c{self.channels}. Pass "
                    f"'{self.config.source}'."
                )
            raise ConfigError(
                f"Encoder {shown} makes latents of {found} of an image whose latent is {self.channels}x{side}x{side} "
                f"here. Accepted: f{config.stride}c{self.channels}. Set tokenizer.latent_channels and "
                "tokenizer.encoder.stride to what it makes, or pass another encoder."
            )
        if expected is not None and not (off := distance(take_fingerprint(encode), expected)) <= TOLERANCE:
            raise CheckpointError(
                f"Encoder {shown} is another one than that of the model: its latent of the test image differs by "
                f"{off:.0%}. Accepted: up to {TOLERANCE:.0%}. Pass '{self.config.source}'."
            )
        self._opened = _Opened(encode)

    def _found_at(self, source: str | None) -> FrozenEncoderConfig:
        """The configuration with another source, to which no revision of the first one belongs."""
        if source is None or source == self.config.source:
            return self.config
        config = replace(self.config, source=source)
        return config if isinstance(config, LatentFilesConfig) else replace(config, revision=None)

    @property
    def commit(self) -> str | None:
        """Of the hub, where it is open and was fetched from there."""
        return None if self._opened is None else self._opened.encode.commit

    @property
    def pipeline_scale(self) -> PipelineScale | None:
        """How pipelines scale its latents, as the configuration or the open encoder says; None if unknown."""
        found = None if self._opened is None else self._opened.encode.pipeline_scale
        return self.config.pipeline or found

    def raw(self, latent: Float[Tensor, "b p y x"], space: LatentSpace) -> Float[Tensor, "b c h w"]:
        """Raw latents of raw ones, or of those of a pipeline, packed or not.

        Raises:
            ConfigError: If it is not known how pipelines scale them, or the number of channels does not fit.
        """
        packing = 1 if space == "raw" else self._known_scale().packing
        if latent.shape[1] not in (self.channels, packed_channels := self.channels * packing**2):
            also = "" if packing == 1 else f", or {packed_channels} packed"
            known = self.pipeline_scale
            of_pipeline = space == "raw" and known is not None and latent.shape[1] == self.channels * known.packing**2
            advice = "They are packed as in a pipeline: name its scale (--from pipeline, space='pipeline')"
            raise ConfigError(
                f"Latents have {latent.shape[1]} channels. Accepted: {self.channels}{also}. "
                f"{advice if of_pipeline else 'Use a model of the autoencoder that they are of'}."
            )
        if space == "raw":
            return latent
        packed = F.pixel_unshuffle(latent, packing) if latent.shape[1] == self.channels else latent
        return self._known_scale().raw(packed)

    def foreign(self, raw: Float[Tensor, "b c h w"], space: LatentSpace) -> Float[Tensor, "b p y x"]:
        """The inverse of `raw`; packed where pipelines pack."""
        return raw if space == "raw" else self._known_scale().pipeline(raw)

    def _known_scale(self) -> PipelineScale:
        if self.pipeline_scale is None:
            raise ConfigError(
                f"How pipelines scale latents of '{self.config.source}' is not known. Accepted: raw latents. Set "
                "tokenizer.encoder.pipeline in the model's configuration, or undo the scale first."
            )
        return self.pipeline_scale

    def measure_fingerprint(self) -> list[float]:
        """The fingerprint of the encoder, which is opened if it is not."""
        return take_fingerprint(self)

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        """Encodes images in [-1, 1] whose sides are multiples of the stride, in float32; the first call opens it."""
        if self._opened is None:
            self.open()
        assert self._opened is not None
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            return self._opened.encode(images.float()).float()


def open_encoders(encoders: Sequence[tuple[str, nn.Module]], source: str | None) -> None:
    """Opens the frozen ones among the encoders of models.

    Args:
        encoders: Names of models, and their encoders.
        source: Where the frozen ones are; None for where each model says.

    Raises:
        CheckpointError: If one is not there, or is another one.
        ConfigError: If a source is named, and none is frozen.
    """
    frozen = [encoder for _, encoder in encoders if isinstance(encoder, FrozenEncoder)]
    if source is not None and not frozen:
        names = ", ".join(f"'{name}'" for name, _ in encoders)
        raise ConfigError(
            f"--encoder {source} does not fit {names}. It is for models that hold a decoder alone. Leave it out."
        )
    for encoder in frozen:
        encoder.open(source)


def same_encoder(one: object, other: object) -> bool:
    """Whether two configurations mean the same encoder: by their fingerprints where both have one, else by settings."""
    if type(one) is not type(other) or not isinstance(one, FrozenEncoderConfig):
        return one == other
    assert isinstance(other, FrozenEncoderConfig)
    if one.stride != other.stride:
        return False
    if one.fingerprint is not None and other.fingerprint is not None:
        return distance(one.fingerprint, other.fingerprint) <= TOLERANCE
    return _name(one.source) == _name(other.source)


def kept(encoder: FrozenEncoder, fingerprint: Sequence[float] | None) -> FrozenEncoderConfig:
    """What a model says of its encoder: the fingerprint, of a local path the name alone, of a hub id the commit."""
    config = encoder.config
    if not isinstance(config, LatentFilesConfig):
        if Path(config.source).expanduser().exists():
            config = replace(config, source=_name(config.source))
        elif encoder.commit is not None:
            config = replace(config, revision=encoder.commit)
    if encoder.pipeline_scale is not None:
        config = replace(config, pipeline=encoder.pipeline_scale)
    return config if fingerprint is None else replace(config, fingerprint=list(fingerprint))


class _Opened:
    """An open encoder, which never changes: copies of a model (averaged weights) share it."""

    def __init__(self, encode: Encode) -> None:
        self.encode = encode

    def __deepcopy__(self, _memo: dict[int, Any]) -> "_Opened":
        return self


def _open(config: FrozenEncoderConfig, *, known_as: str) -> Encode:
    match config:
        case OnnxEncoderConfig():
            from stepladder.encoders.onnx import open_onnx

            return open_onnx(config, known_as=known_as)
        case DiffusersEncoderConfig():
            from stepladder.encoders.diffusers import open_diffusers

            return open_diffusers(config, known_as=known_as)
        case LatentFilesConfig():
            raise CheckpointError(
                f"The latents of this model come from '{known_as}', an encoder that is not here. Accepted: latents, to "
                "decode or in files of images beside their latents. Encode where that encoder is."
            )


def _name(source: str) -> str:
    return Path(source).name
