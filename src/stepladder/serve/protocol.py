"""The request and the answers of `remote_decode` of diffusers, without any web framework.

The body of a request is the bytes of a tensor, row by row, little-endian; everything else stands in the query:

    shape (once for each dimension), dtype      of the tensor: (B, c, h, w), or packed as FLUX does, (B, hw / 4, 4 c)
    height, width                               of the images, where the tensor is packed
    scaling_factor, shift_factor, do_scaling    z / scaling_factor + shift_factor is what the decoder takes
    output_type, image_format                   "pil": one PNG or JPEG; "pt": the bytes of a tensor
    partial_postprocess                         "pt" as uint8 (B, H, W, 3), instead of [-1, 1] in the dtype that came

A tensor goes back with its shape and dtype in the headers. `do_scaling` without factors means those of the model.
Latents of a tokenizer with an encoder of its own have unit scale, so its factors are 1 and 0; a request with other
factors than those of the model was meant for another one.

Reference: https://huggingface.co/docs/diffusers/hybrid_inference/vae_decode
"""

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from stepladder.encoders.scale import PipelineScale, grid_of_tokens
from stepladder.images import to_pil, to_uint8
from stepladder.layouts import GridLayout
from stepladder.serve.query import Query, RequestError, whole

__all__ = ["Answer", "DecodeRequest", "Limits", "answer", "parse_request"]

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_JPEG_QUALITY = 95


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one request may ask for."""

    side: int = 2048
    """Longest side of an image."""
    images: int = 8
    """Most images."""

    def body(self, layout: GridLayout) -> int:
        """Bytes of the largest tensor."""
        cells = math.prod(layout.shape((self.side, self.side)))
        return self.images * cells * max(_BYTES.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeRequest:
    """A request that was understood."""

    latent: Float[Tensor, "b c h w"]
    """Raw, as the encoder of the model gives it, in float32."""
    dtype: torch.dtype
    """Of the tensor that was sent."""
    output: Literal["pil", "pt"]
    """A picture, or a tensor."""
    image_format: Literal["png", "jpg"]
    """Of the picture."""
    form: Literal["signed", "unit", "bytes"]
    """Of the tensor: [-1, 1] and [0, 1] as (B, 3, H, W), or uint8 (B, H, W, 3)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What goes back."""

    body: bytes
    media_type: str
    headers: dict[str, str]


def parse_request(
    query: Query,
    body: bytes,
    *,
    accept: str,
    layout: GridLayout,
    scale: PipelineScale | None,
    limits: Limits,
) -> DecodeRequest:
    """Reads a request.

    Args:
        query: What stands in the URL.
        body: Bytes of the tensor.
        accept: The header of this name: a client that looks at pictures itself asks for a tensor here.
        layout: Of the latents that the model decodes.
        scale: How pipelines scale them; None if the model does not know.
        limits: What may be asked for.

    Raises:
        RequestError: If it is damaged, too large, or asks for what the model cannot give.
    """
    dtype = query.choice("dtype", tuple(_DTYPES))
    shape = query.shape()
    output = query.choice("output_type", ("pil", "pt"), "pil")
    picture = output == "pil" and not accept.startswith("tensor/")
    height, width = _size(query, shape, layout)
    _check_limits(shape[0], height, width, picture, limits)
    expected = math.prod(shape) * _BYTES[dtype]
    if len(body) != expected:
        raise RequestError(
            f"Body of {len(body)} bytes does not hold a tensor of shape {shape} in {dtype}, which has {expected}. Send "
            "the bytes of the whole tensor."
        )
    values = torch.frombuffer(bytearray(body), dtype=_DTYPES[dtype]).reshape(shape).float()
    cells = height // (2 * layout.stride), width // (2 * layout.stride)
    latent = grid_of_tokens(values, cells) if len(shape) == 3 else values
    if not latent.isfinite().all():
        raise RequestError("The tensor holds NaN or infinity. Latents are finite numbers. Encode or generate again.")
    unit: Literal["signed", "unit"] = "unit" if output == "pil" else "signed"
    return DecodeRequest(
        latent=_raw(query, latent, scale),
        dtype=_DTYPES[dtype],
        output="pil" if picture else "pt",
        image_format="png" if query.choice("image_format", ("png", "jpg"), "jpg") == "png" else "jpg",
        form="bytes" if output == "pt" and query.flag("partial_postprocess") else unit,
    )


def answer(request: DecodeRequest, images: Float[Tensor, "b 3 H W"]) -> Answer:
    """The answer to a request, of images in [-1, 1]."""
    if request.output == "pil":
        file = io.BytesIO()
        kind, options = (
            ("PNG", {}) if request.image_format == "png" else ("JPEG", {"quality": _JPEG_QUALITY, "subsampling": 0})
        )
        to_pil(images[0]).save(file, format=kind, **options)
        return Answer(body=file.getvalue(), media_type=f"image/{kind.lower()}", headers={})
    match request.form:
        case "bytes":
            tensor = to_uint8(images).permute(0, 2, 3, 1)
        case "unit":
            tensor = (images / 2 + 0.5).clamp(0, 1).to(request.dtype)
        case "signed":
            tensor = images.to(request.dtype)
    flat = tensor.contiguous().view(torch.uint8).cpu().numpy()
    headers = {"shape": json.dumps(list(tensor.shape)), "dtype": str(tensor.dtype).removeprefix("torch.")}
    return Answer(body=flat.tobytes(), media_type="tensor/binary", headers=headers)


def _size(query: Query, shape: Sequence[int], layout: GridLayout) -> tuple[int, int]:
    """(H, W) of the images."""
    packed = len(shape) == 3
    channels = shape[2] if packed else shape[1]
    wanted = 4 * layout.channels if packed else layout.channels
    if channels != wanted:
        accepted = f"(B, N, {wanted})" if packed else f"(B, {wanted}, h, w)"
        raise RequestError(
            f"Latents of shape {list(shape)} have {channels} channels, and the model decodes {layout}. Accepted: "
            f"{accepted}. Send latents of its own autoencoder."
        )
    if not packed:
        return shape[2] * layout.stride, shape[3] * layout.stride
    sides = [query.last(name) for name in ("height", "width")]
    if None in sides:
        raise RequestError("Packed latents come without height and width. Both are needed. Pass those of the image.")
    height, width = (whole(side or "", name) for side, name in zip(sides, ("height", "width"), strict=True))
    block = 2 * layout.stride
    rows, columns = height // block, width // block
    if rows * columns != shape[1]:
        raise RequestError(
            f"Packed latents of {shape[1]} blocks do not cover {width} x {height}, which has {rows * columns} blocks "
            f"of {block} x {block}. Pass the height and width that they were made for."
        )
    return rows * block, columns * block


def _check_limits(count: int, height: int, width: int, picture: bool, limits: Limits) -> None:
    if max(height, width) > limits.side:
        raise RequestError(
            f"An image of {width} x {height} is too large. Accepted: sides up to {limits.side}. Ask for a smaller one, "
            "or start the server with a larger --max-side.",
            413,
        )
    if count > limits.images:
        raise RequestError(f"{count} images in one request. Accepted: up to {limits.images}. Send fewer at once.", 413)
    if picture and count > 1:
        raise RequestError(
            f"{count} images do not fit one file. Accepted: 1 with output_type pil. Pass output_type pt, or send them "
            "one by one."
        )


def _raw(query: Query, latent: Float[Tensor, "b c h w"], scale: PipelineScale | None) -> Float[Tensor, "b c h w"]:
    """What the decoder takes: the latent as it came, or that of which a pipeline made it by factors."""
    factors = {name: query.number(name) for name in ("scaling_factor", "shift_factor")}
    if all(value is None for value in factors.values()):
        if not query.flag("do_scaling"):
            return latent
        if scale is None:
            raise RequestError(
                "The model does not know how pipelines scale its latents. Accepted: scaling_factor and shift_factor, "
                "or raw latents. Pass those of its autoencoder, or do_scaling=False."
            )
        return scale.raw_of_grid(latent)
    asked = tuple(default if value is None else value for value, default in zip(factors.values(), (1, 0), strict=True))
    if asked[0] <= 0:
        raise RequestError(f"Parameter scaling_factor {asked[0]:g} is not above 0. Pass that of the autoencoder.")
    if scale is not None:
        _check_factors(asked, scale)
    return latent / asked[0] + asked[1]


def _check_factors(asked: tuple[float, ...], scale: PipelineScale) -> None:
    """A request with factors of another model would give a picture of nothing."""
    if scale.packing > 1 or len(scale.factor) > 1:
        raise RequestError(
            "Latents of the model are scaled channel by channel, and not by one scaling_factor. Accepted: "
            "do_scaling=True alone, or raw latents. Leave scaling_factor and shift_factor out."
        )
    for name, value, own in zip(
        ("scaling_factor", "shift_factor"), asked, (1 / scale.factor[0], scale.offset[0]), strict=True
    ):
        if not math.isclose(value, own, rel_tol=1e-3, abs_tol=1e-6):
            raise RequestError(
                f"Parameter {name} {value:g} is not that of the model, {own:g}. Leave it out where latents have unit "
                "scale, or send the latents to a decoder that was made for them."
            )
