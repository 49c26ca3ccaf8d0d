"""The request and the answers of `remote_decode` of diffusers, without any web framework.

The body of a request is the bytes of a tensor, row by row, little-endian; everything else stands in the query:

    shape (once for each dimension), dtype      of the tensor: (B, c, h, w), or packed as FLUX does, (B, hw / 4, 4 c)
    height, width                               of the images, where the tensor is packed
    scaling_factor, shift_factor, do_scaling    z / scaling_factor + shift_factor is what the decoder takes
    output_type, image_format                   "pil": one PNG or JPEG; "pt": the bytes of a tensor
    partial_postprocess                         "pt" as uint8 (B, H, W, 3), instead of [-1, 1] in the dtype that came

A tensor goes back with its shape and dtype in the headers. Latents of a tokenizer have unit scale, so its own factors
are 1 and 0; a request with others was meant for another model.

Reference: https://huggingface.co/docs/diffusers/hybrid_inference/vae_decode
"""

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from stepladder.errors import StepladderError
from stepladder.images import to_pil, to_uint8
from stepladder.layouts import GridLayout

__all__ = ["Answer", "DecodeRequest", "Limits", "RequestError", "answer", "parse_request"]

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_YES, _NO = ("true", "1"), ("false", "0", "none")
_JPEG_QUALITY = 95


class RequestError(StepladderError):
    """A request that cannot be answered, with the status that says so."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


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
    """As the tokenizer takes it, in float32."""
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
    query: Mapping[str, Sequence[str]], body: bytes, *, accept: str, layout: GridLayout, limits: Limits
) -> DecodeRequest:
    """Reads a request.

    Args:
        query: Every value of each parameter.
        body: Bytes of the tensor.
        accept: The header of this name: a client that looks at pictures itself asks for a tensor here.
        layout: Of the latents that the model decodes.
        limits: What may be asked for.

    Raises:
        RequestError: If it is damaged, too large, or asks for what the model cannot give.
    """
    dtype = _choice(query, "dtype", tuple(_DTYPES))
    shape = _shape(query)
    output = _choice(query, "output_type", ("pil", "pt"), "pil")
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
    latent = _unpacked(values, layout, height, width) if len(shape) == 3 else values
    if not latent.isfinite().all():
        raise RequestError("The tensor holds NaN or infinity. Latents are finite numbers. Encode or generate again.")
    _check_scale(query)
    unit: Literal["signed", "unit"] = "unit" if output == "pil" else "signed"
    return DecodeRequest(
        latent=latent,
        dtype=_DTYPES[dtype],
        output="pil" if picture else "pt",
        image_format="png" if _choice(query, "image_format", ("png", "jpg"), "jpg") == "png" else "jpg",
        form="bytes" if output == "pt" and _flag(query, "partial_postprocess") else unit,
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


def _choice(
    query: Mapping[str, Sequence[str]], name: str, accepted: tuple[str, ...], default: str | None = None
) -> str:
    value = _one(query, name)
    if value is None and default is not None:
        return default
    if value not in accepted:
        said = "is missing" if value is None else f"{value[:40]!r} is unknown"
        raise RequestError(f"Parameter {name} {said}. Accepted: {', '.join(accepted)}. Pass one of them.")
    return value


def _one(query: Mapping[str, Sequence[str]], name: str) -> str | None:
    values = query.get(name, ())
    return values[-1] if values else None


def _flag(query: Mapping[str, Sequence[str]], name: str) -> bool:
    value = (_one(query, name) or "false").lower()
    if value not in (*_YES, *_NO):
        raise RequestError(f"Parameter {name} {value[:40]!r} is unknown. Accepted: True, False. Pass one of them.")
    return value in _YES


def _whole(text: str, name: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9 or int(text) < 1:
        raise RequestError(f"Parameter {name} {text[:40]!r} is no whole number from 1 on. Pass the one of the tensor.")
    return int(text)


def _number(query: Mapping[str, Sequence[str]], name: str) -> float | None:
    text = _one(query, name)
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        raise RequestError(f"Parameter {name} {text[:40]!r} is no number. Pass one, or leave it out.") from None


def _shape(query: Mapping[str, Sequence[str]]) -> list[int]:
    """One value for each dimension, or a JSON list as the only one."""
    values = list(query.get("shape", ()))
    if len(values) == 1 and values[0].startswith("["):
        values = [value.strip() for value in values[0].strip("[] ").split(",")]
    if len(values) not in (3, 4):
        raise RequestError(
            f"Shape has {len(values)} dimensions. Accepted: 4 (B, c, h, w), or 3 of packed latents. Pass shape once "
            "for each dimension."
        )
    return [_whole(value, "shape") for value in values]


def _size(query: Mapping[str, Sequence[str]], shape: Sequence[int], layout: GridLayout) -> tuple[int, int]:
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
    sides = [_one(query, name) for name in ("height", "width")]
    if None in sides:
        raise RequestError("Packed latents come without height and width. Both are needed. Pass those of the image.")
    height, width = (_whole(side or "", name) for side, name in zip(sides, ("height", "width"), strict=True))
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


def _unpacked(values: Float[Tensor, "b n c4"], layout: GridLayout, height: int, width: int) -> Float[Tensor, "b c h w"]:
    """The grid of latents whose blocks of 2 x 2 cells are tokens, as in FLUX."""
    rows, columns = height // (2 * layout.stride), width // (2 * layout.stride)
    grid = values.mT.reshape(values.shape[0], values.shape[2], rows, columns)
    return torch.nn.functional.pixel_shuffle(grid, 2)


def _check_scale(query: Mapping[str, Sequence[str]]) -> None:
    """Only factors that change nothing fit latents of unit scale."""
    for name, own in (("scaling_factor", 1.0), ("shift_factor", 0.0)):
        asked: Any = _number(query, name)
        if asked is not None and not math.isclose(asked, own, abs_tol=1e-6):
            raise RequestError(
                f"Parameter {name} {asked:g} is not that of the model, {own:g}: its latents have unit scale. Leave it "
                "out, or send the latents to a decoder that was made for them."
            )
