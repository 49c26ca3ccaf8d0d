"""Evaluation of a tokenizer during a run: validation images, and the residual of each stage.

The residual of a stage is the standard deviation of

    network(x_u)  -  the same with the network's last layers silenced

over the pixels of a training batch, on [-1, 1], x_u at the noise levels of the training. Last layers start at zero, so
a residual grows from 0; if it stays there, the stage only repeats its input, and its evaluation is wasted.
"""

import contextlib
import itertools
import logging
import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from stepladder.data import CodedImages, evaluation_images, evaluation_pairs, open_pairs, open_source, stack_pairs
from stepladder.errors import DataError
from stepladder.images import grid, to_pil
from stepladder.losses import draw_stages
from stepladder.measure.metrics import psnr, quantise
from stepladder.measure.stages import working_from
from stepladder.processes import Processes
from stepladder.sampling.denoiser import Denoised
from stepladder.sampling.path import path
from stepladder.sampling.randomness import generator
from stepladder.sampling.scales import down
from stepladder.sampling.stages import Stage
from stepladder.tokenizer import Encoding, Tokenizer
from stepladder.training.batches import Batch
from stepladder.training.coding import coded
from stepladder.training.config import ImageRunConfig
from stepladder.training.records import Findings, row_title

__all__ = ["ImageValidation", "reconstruct", "stage_residuals"]

_log = logging.getLogger(__name__)

_RESIDUALS_EVERY = 250
"""Steps after which the next record says what the stages add."""
_RESIDUAL_IMAGES = 8
_LEAST_WARM_UP = 100
_CAPTION = 14
"""Least height of the letters above a row of a grid, in pixels. A wide grid is shown smaller, and has larger ones."""


class ImageValidation:
    """Grids and PSNR of validation images every `grid_every` steps; residuals then, and every few hundred steps.

    Args:
        config: The run.
        side: To which validation images are cut.
        stride: Of latents that stand beside them in files.
        stages: Whether the run evaluates stages, so that they add something.

    Raises:
        DataError: If no validation image can be read.
    """

    def __init__(self, config: ImageRunConfig, *, side: int, stride: int, stages: bool = True) -> None:
        self._config, self._stages = config, stages
        wanted = config.data.validation and config.grid_every
        self._images = _validation_images(config, side, stride) if wanted else None

    def due(self, step: int) -> bool:
        """At grids, and at the first record after every few hundred steps."""
        config = self._config
        records = step > 0 and step % config.log_every == 0 and step % _RESIDUALS_EVERY < config.log_every
        return self._draws(step) or step == config.steps or records

    def __call__(self, model: nn.Module, batch: Batch, step: int) -> tuple[Findings, Image.Image | None]:
        """PSNR and a grid when one is due; residuals except before the first step.

        Processes share the validation images; the first one gets all, and takes the residuals of its own batch.
        """
        assert isinstance(model, Tokenizer)
        residuals, quality, picture = None, None, None
        if step and self._stages and Processes().main:
            residuals = stage_residuals(model, batch[:_RESIDUAL_IMAGES], seed=self._config.seed)
            self._warn(residuals, model.schedule.stages, step)
        if self._images is not None and self._draws(step):
            images = [image.to(batch.device) for image in self._images]
            quality, picture = reconstruct(model, images, steps=sorted({1, model.steps_per_stage}))
        return Findings(psnr_db=quality, stage_residuals=residuals), picture

    def _draws(self, step: int) -> bool:
        """Whether a grid is due."""
        every = self._config.grid_every
        return self._images is not None and (step % every == 0 or step == self._config.steps)

    def _warn(self, residuals: Sequence[float], stages: Sequence[Stage], step: int) -> None:
        if step <= max(_LEAST_WARM_UP, self._config.optimiser.warmup_steps):
            return
        for stage, residual in zip(stages, residuals, strict=True):
            if residual < working_from(stage):
                _log.warning(
                    "Stage %d: the network adds %.1g to the image at step %d. Below %g the stage does nothing: see "
                    "'A stage that adds nothing' in docs/training.md.",
                    stage.index,
                    residual,
                    step,
                    working_from(stage),
                )


@torch.inference_mode()
def stage_residuals(tokenizer: Tokenizer, batch: Float[Tensor, "b 3 H W"] | CodedImages, *, seed: int) -> list[float]:
    """Standard deviation of what the network adds at each stage, coarse first, on [-1, 1].

    Args:
        tokenizer: In evaluation mode.
        batch: Crops that it trains on, in [-1, 1], with their latents where they are from files.
        seed: Of noise and times.
    """
    network, schedule = tokenizer.decoder.network, tokenizer.schedule
    images, code = coded(tokenizer, batch)
    denoiser = network.bind(code.latent)
    previous: Denoised | None = None
    found = []
    draws = draw_stages(schedule, images, generator(seed, images.device))
    for stage, draw in zip(schedule.stages, draws, strict=True):
        x = path(down(images, stage.downscale), draw.noise, draw.u, stage).x
        denoised = denoiser(x, draw.u, stage, previous)
        with _silenced(network.output_layers):
            base = denoiser(x, draw.u, stage, previous)
        found.append((denoised.clean - base.clean).std().item())
        previous = denoised
    return found


def reconstruct(
    tokenizer: Tokenizer, images: Sequence[Float[Tensor, "1 3 s s"] | CodedImages], *, steps: Sequence[int]
) -> tuple[dict[str, float], Image.Image | None]:
    """Mean PSNR in dB of images that are reconstructed one by one, and originals above reconstructions.

    Where a group of processes is open, each works on every P-th image, and the main one has the result: of others, no
    number and no picture.

    Args:
        tokenizer: In evaluation mode; the same on every process.
        images: In [-1, 1], each a batch of its own, with their latents where they are from files.
        steps: Steps per stage to try; the picture has one row for each, below originals and initial estimates.
    """
    processes = Processes()
    mine = {
        seed: _column(tokenizer, images[seed], seed, steps)
        for seed in range(processes.index, len(images), processes.count)
    }
    columns = {seed: column for part in processes.gather(mine) for seed, column in part.items()}
    if not processes.main:
        return {}, None
    rows = {name: [columns[seed][name] for seed in sorted(columns)] for name in columns[0]}
    references = quantise(torch.cat(rows["original"]))
    result = {
        name: psnr(quantise(torch.cat(row)), references).mean().item()
        for name, row in rows.items()
        if name != "original"
    }
    return result, _captioned(rows)


def _column(tokenizer: Tokenizer, item: Tensor | CodedImages, seed: int, steps: Sequence[int]) -> dict[str, Tensor]:
    """An image and what the tokenizer makes of it, by the names of rows; on the CPU."""
    image, code = (item, tokenizer.encode(item)) if isinstance(item, Tensor) else _from_files(tokenizer, item)
    column = {"original": image}
    with torch.inference_mode():
        padded = tokenizer.decoder.network.context(code.latent).initial
    if padded is not None:
        column["initial"] = padded[:, :, : image.shape[2], : image.shape[3]].clamp(-1, 1)
    column |= {str(count): tokenizer.decode(code, seeds=[seed], steps=count) for count in steps}
    return {name: tile.float().cpu() for name, tile in column.items()}


def _captioned(rows: dict[str, list[Tensor]]) -> Image.Image:
    """Rows of images, each below a line that says what they are."""
    bands = [grid([to_pil(tile[0]) for tile in row], columns=len(row)) for row in rows.values()]
    size = max(_CAPTION, bands[0].width // 64)
    font = ImageFont.load_default(size)
    width = max(bands[0].width, *(math.ceil(font.getlength(row_title(name))) + 4 for name in rows))
    line = math.ceil(1.5 * size)
    sheet = Image.new("RGB", (width, sum(band.height + line for band in bands)), "white")
    draw, top = ImageDraw.Draw(sheet), 0
    for name, band in zip(rows, bands, strict=True):
        draw.text((2, top + line // 2), row_title(name), fill="black", font=font, anchor="lm")
        sheet.paste(band, (0, top + line))
        top += band.height + line
    return sheet


@contextlib.contextmanager
def _silenced(layers: Sequence[nn.Module]) -> Iterator[None]:
    """The outputs of layers are zero inside this context."""
    handles = [layer.register_forward_hook(lambda _module, _inputs, out: torch.zeros_like(out)) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _from_files(tokenizer: Tokenizer, pair: CodedImages) -> tuple[Tensor, Encoding]:
    with torch.inference_mode():
        images, code = coded(tokenizer, pair)
    return images, Encoding(latent=code.latent, size=(images.shape[2], images.shape[3]))


def _validation_images(config: ImageRunConfig, side: int, stride: int) -> list[Tensor] | list[CodedImages]:
    data = config.data
    if data.latents:
        source = open_pairs(data.validation)
        pairs = evaluation_pairs(source, side=side, stride=stride, limit=data.validation_images)
        return [stack_pairs([pair]) for pair in pairs]
    found = evaluation_images(open_source(data.validation), size=side, limit=data.validation_images)
    images = [image[None] for _, image in itertools.islice(found, data.validation_images)]
    if not images:
        raise DataError(f"No image can be read in data.validation {data.validation}. Pass other images, or none.")
    return images
