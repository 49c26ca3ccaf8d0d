"""The residual of a latent at each scale, and the contribution of each stage of a decoder.

Residuals. The initial estimate is the image that the decoder computes from the latent alone. At the scale of stage i
its error has the standard deviation r_i: this is all that is left to draw there. `sampling.stages.proposed_ends` turns
these numbers into noise levels at which stages end.

Contributions. A stage works if its network adds something to its base (`working_from`), and if the image gets worse
without it. The network of a stage is silenced by setting its last layers to zero, so that it returns its base, with the
same weights and noise otherwise.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stepladder.data import ImageSource, evaluation_images
from stepladder.decoders import DecoderNetwork
from stepladder.errors import ConfigError
from stepladder.layouts import check_side
from stepladder.sampling.denoiser import Denoised, Denoiser
from stepladder.sampling.grids import time_grids
from stepladder.sampling.randomness import generators
from stepladder.sampling.sampler import StageEnd, sample
from stepladder.sampling.scales import down
from stepladder.sampling.stages import Stage
from stepladder.tokenizer import Tokenizer

__all__ = ["StageContribution", "contributions", "residuals", "silenced", "working_from"]

_WORKING_SHARE, _WORKING = 0.02, 1e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class StageContribution:
    """What one stage adds."""

    stage: int
    """Position on the ladder, from 0."""
    downscale: int
    """Image side over the side of this stage."""
    psnr_db: float
    """Of the clean image of the stage, at its own scale."""
    initial_psnr_db: float | None
    """Of the initial estimate at that scale; None where the decoder makes none."""
    added: float
    """Standard deviation of the network's contribution there, on [-1, 1]."""
    loss_db: float
    """Loss of the final image, in dB of PSNR, when only the network of this stage is silenced."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@torch.no_grad()
def residuals(
    tokenizer: Tokenizer, source: ImageSource, *, size: int = 256, limit: int | None = None, stages: int | None = None
) -> list[float]:
    """Standard deviation of the error of the initial estimate, at the scale of each stage, coarse first, on [-1, 1].

    Args:
        tokenizer: In evaluation mode.
        source: Images.
        size: Side of the square to which they are cut; a multiple of 2 for each stage but one.
        limit: How many images at most.
        stages: Scales to measure; those of the tokenizer's ladder by default.

    Raises:
        ConfigError: If the decoder makes no initial estimate, or the size does not fit.
        DataError: If no image can be read.
    """
    count = tokenizer.schedule.num_stages if stages is None else stages
    sums, images = torch.zeros(count, dtype=torch.float64), 0
    for batch in _images(tokenizer, source, size, limit, 2 ** (count - 1)):
        initial = tokenizer.decoder.network.context(tokenizer.encode(batch).latent).initial
        if initial is None:
            raise ConfigError(
                "The decoder makes no initial estimate, so there is no residual to measure. Accepted: decoders of kind "
                "'conv', or 'mmdit' with linear = true. Pass another model."
            )
        error = initial[:, :, :size, :size] - batch
        squares = [down(error, 2 ** (count - 1 - i)).square().mean().item() for i in range(count)]
        sums += torch.tensor(squares, dtype=torch.float64)
        images += 1
    return (sums / images).sqrt().tolist()


@torch.no_grad()
def contributions(
    tokenizer: Tokenizer,
    source: ImageSource,
    *,
    size: int = 256,
    limit: int | None = None,
    steps: int | Sequence[int] | None = None,
    seed: int = 0,
) -> list[StageContribution]:
    """What each stage adds to the images of a decode.

    Args:
        tokenizer: In evaluation mode.
        source: Images.
        size: Side of the square to which they are cut.
        limit: How many images at most.
        steps: Steps per stage; the tokenizer's own by default.
        seed: Image i is decoded with the seed `seed + i`.

    Raises:
        ConfigError: If the size does not fit.
        DataError: If no image can be read.
    """
    schedule, quiet = tokenizer.schedule, silenced(tokenizer.decoder.network)
    grids = time_grids(schedule, tokenizer.steps_per_stage if steps is None else steps)
    sums, images = torch.zeros(schedule.num_stages, 4, dtype=torch.float64), 0
    for i, image in enumerate(_images(tokenizer, source, size, limit, tokenizer.decoder.side_multiple)):
        latent = tokenizer.encode(image).latent
        bound, silent = tokenizer.decoder.network.bind(latent), quiet.bind(latent)
        initial = bound.context.initial

        added = [0.0] * schedule.num_stages
        decode = partial(_decode, tokenizer, grids, (size, size), seed + i)
        ends = decode(_listening(bound, silent, added))
        full = _psnr(ends[-1].clean, image)
        for end in ends:
            reference = down(image, end.stage.downscale)
            estimate = None if initial is None else down(initial, end.stage.downscale)
            without = decode(_silent_at(bound, silent, end.stage.index))[-1].clean
            sums[end.stage.index] += torch.tensor(
                [
                    _psnr(end.clean, reference),
                    math.nan if estimate is None else _psnr(estimate, reference),
                    added[end.stage.index],
                    full - _psnr(without, image),
                ],
                dtype=torch.float64,
            )
        images += 1
    return [
        StageContribution(
            stage=stage.index,
            downscale=stage.downscale,
            psnr_db=row[0],
            initial_psnr_db=None if math.isnan(row[1]) else row[1],
            added=row[2],
            loss_db=row[3],
        )
        for stage, row in zip(schedule.stages, (sums / images).tolist(), strict=True)
    ]


def working_from(stage: Stage) -> float:
    """Standard deviation that a network must add at a stage for the stage to work, on [-1, 1].

    It is 2 % of what the latent leaves open there, or 0.001 where that was not measured. Stages whose head has
    saturated add 0.2 to 0.7 %, the same at every pixel.
    """
    return _WORKING if stage.residual is None else _WORKING_SHARE * stage.residual


def silenced(network: DecoderNetwork) -> DecoderNetwork:
    """A copy of a network with its last layers at zero, so that it adds nothing."""
    quiet = copy.deepcopy(network)
    for layer in quiet.output_layers:
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
    return quiet


def _decode(
    tokenizer: Tokenizer, grids: Sequence[Sequence[float]], size: tuple[int, int], seed: int, denoiser: Denoiser
) -> list[StageEnd]:
    draws = generators([seed], tokenizer.device)
    return list(sample(denoiser, tokenizer.schedule, size=size, generators=draws, grids=grids))


def _listening(bound: Denoiser, silent: Denoiser, added: list[float]) -> Denoiser:
    """The denoiser `bound`, which notes what it adds in the first step of each stage."""

    def denoise(x: Tensor, u: Tensor, stage: Stage, previous: Denoised | None) -> Denoised:
        found = bound(x, u, stage, previous)
        if bool((u == 1).all()):
            added[stage.index] = (found.clean - silent(x, u, stage, previous).clean).std().item()
        return found

    return denoise


def _silent_at(bound: Denoiser, silent: Denoiser, index: int) -> Denoiser:
    """The denoiser `bound` but for one stage, where its network is silenced."""

    def denoise(x: Tensor, u: Tensor, stage: Stage, previous: Denoised | None) -> Denoised:
        return (silent if stage.index == index else bound)(x, u, stage, previous)

    return denoise


def _images(
    tokenizer: Tokenizer, source: ImageSource, size: int, limit: int | None, multiple: int
) -> Iterator[Float[Tensor, "1 3 s s"]]:
    """Square images, one by one."""
    check_side(tokenizer.layout, size, "this model")
    needed = math.lcm(multiple, tokenizer.layout.side_multiple)
    if size < 1 or size % needed:
        raise ConfigError(
            f"Image side {size} is not a multiple of {needed}. Pass --size {max(1, size // needed) * needed}."
        )
    for _, image in evaluation_images(source, size=size, limit=limit):
        yield image[None].to(tokenizer.device)


def _psnr(images: Tensor, references: Tensor) -> float:
    """PSNR in dB for values in [-1, 1], not rounded: differences of silent stages are far below a step of 8 bits."""
    return -10 * math.log10(max(1e-12, ((images - references) / 2).square().mean().item()))
