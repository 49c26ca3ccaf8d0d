"""What each stage of a decode adds, in dB of PSNR at its own scale.

    over the initial estimate    PSNR(X_i) - PSNR(I_i)      X_i the image of stage i, I_i the initial estimate there
    over the stage before          PSNR(X_i) - PSNR(B_i)      B_i its input: I_i with low frequencies of X_(i-1)

Originals are brought to the scale of a stage by the mean of blocks, as the ladder does. Values are not rounded to 8
bits: what a stage adds can be far below a step. A gain measures what a stage determines, not what it draws: with
several steps in a stage, its image is one of those that fit, which costs PSNR even for a perfect sampler.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stepladder.decoders.base import Context
from stepladder.images import crop_to
from stepladder.sampling.denoiser import Denoised
from stepladder.sampling.scales import down
from stepladder.tokenizer import Encoding, Tokenizer

__all__ = ["StageGain", "stage_gains"]

_FLOOR = 1e-12
"""Least mean square that counts, 120 dB: an exact stage has a finite gain."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageGain:
    """What one stage adds to an image."""

    psnr_db: float
    """Of its image, at its own scale."""
    over_initial_db: float
    """More than the initial estimate at that scale."""
    over_before_db: float
    """More than the input of the stage; at the first stage, the same."""


def stage_gains(
    tokenizer: Tokenizer,
    code: Encoding,
    stages: Sequence[Float[Tensor, "b 3 _ _"]],
    references: Float[Tensor, "b 3 H W"],
) -> list[list[StageGain]] | None:
    """What each stage adds to each image; None where the decoder makes no initial estimate.

    Args:
        tokenizer: That decoded.
        code: What was decoded.
        stages: From `decode_progressively`: the images of all stages, coarse first.
        references: The originals, in [-1, 1]; sides that every stage divides.
    """
    latent = tokenizer.layout.fit_latent(code.latent.to(tokenizer.dtype), tokenizer.decoder.side_multiple)
    context = tokenizer.decoder.network.context(latent)
    if context.initial is None:
        return None
    size = references.shape[-2:]
    cut = Context(context.features, crop_to(context.initial, (size[0], size[1])))
    previous: Denoised | None = None
    columns = []
    for stage, image in zip(tokenizer.schedule.stages, stages, strict=True):
        wanted = down(references, stage.downscale)
        found = _psnr(image, wanted)
        initial, handed = (found - _psnr(cut.base(stage, before), wanted) for before in (None, previous))
        columns.append((found, initial, handed))
        previous = Denoised(image)
    return [
        [
            StageGain(psnr_db=psnr[i].item(), over_initial_db=initial[i].item(), over_before_db=before[i].item())
            for psnr, initial, before in columns
        ]
        for i in range(len(references))
    ]


def _psnr(images: Tensor, references: Tensor) -> Float[Tensor, " b"]:
    """PSNR in dB of each image, for values in [-1, 1]."""
    squares = ((images.clamp(-1, 1) - references) / 2).square().mean(dim=(1, 2, 3))
    return -10 * torch.log10(squares.clamp_min(_FLOOR))
