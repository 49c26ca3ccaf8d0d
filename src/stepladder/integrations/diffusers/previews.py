"""Previews of the latents of a running pipeline, by the first stages of a ladder.

    latent of a step -> as the scheduler would hand it to its network -> first stages -> pictures of a part of the side

The first stage of three has a sixteenth of the pixels, so a preview costs a small part of a decode. Early steps show
noise, as the latents do.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from stepladder.encoders.scale import PipelineScale, grid_of_tokens
from stepladder.errors import ConfigError
from stepladder.images import to_pil
from stepladder.integrations.diffusers.factors import scale_of
from stepladder.layouts import GridLayout
from stepladder.pipelines import decodable
from stepladder.tokenizer import Tokenizer

__all__ = ["Previews"]


@dataclass(frozen=True, kw_only=True)
class Previews:
    """A `callback_on_step_end` of pipelines."""

    show: Callable[[int, list[Image]], None]
    """Called with the step, from 0 on, and one picture for each image."""
    decoder: Tokenizer | None = None
    """What decodes; by default the `vae` of the pipeline, if that is a tokenizer."""
    stages: int = 1
    """How many stages are decoded, with one step in each."""
    every: int = 1
    """Steps between two previews."""
    size: tuple[int, int] | None = None
    """(H, W) of the images of a pipeline that packs its latents (FLUX); it can be left out where they are square."""

    def __post_init__(self) -> None:
        if self.every < 1 or self.stages < 1:
            raise ConfigError(
                f"Previews of {self.stages} stages every {self.every} steps are none. Both are whole numbers from 1 "
                "on. Pass 1 and 1 for the quickest ones."
            )

    def __call__(self, pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """Shows the latents of a step and returns everything as it came.

        Raises:
            ConfigError: If there is nothing to decode with, or the latents do not fit it.
        """
        if (step + 1) % self.every == 0:
            tokenizer = self._tokenizer(pipe)
            scale = pipe.vae.scale if self.decoder is None else scale_of(tokenizer.config)
            scaled = getattr(pipe.scheduler, "scale_model_input", lambda latents, _: latents)
            self.show(step, self._pictures(tokenizer, scale, scaled(tensors["latents"], timestep)))
        return tensors

    def _tokenizer(self, pipe: Any) -> Tokenizer:
        found = self.decoder or getattr(pipe.vae, "tokenizer", None)
        if not isinstance(found, Tokenizer):
            raise ConfigError(
                f"The vae of the pipeline, {type(pipe.vae).__name__}, is no tokenizer. Previews need one for its "
                "latents. Pass decoder=Tokenizer.from_pretrained(MODEL)."
            )
        if self.stages > found.schedule.num_stages:
            raise ConfigError(
                f"Previews of {self.stages} stages do not fit a model with {found.schedule.num_stages}. Pass "
                f"stages={found.schedule.num_stages} or fewer."
            )
        return found

    @torch.no_grad()
    def _pictures(self, tokenizer: Tokenizer, scale: PipelineScale, latents: Tensor) -> list[Image]:
        layout = tokenizer.layout
        assert isinstance(layout, GridLayout)
        grid = latents if latents.ndim == 4 else grid_of_tokens(latents, self._cells(latents, layout))
        latent = decodable(tokenizer, scale.raw_of_grid(grid))
        stages = tokenizer.decode_progressively(latent, seeds=[0] * len(grid), steps=1)
        *_, images = islice(stages, self.stages)
        return [to_pil(image) for image in images.float()]

    def _cells(self, latents: Tensor, layout: GridLayout) -> tuple[int, int]:
        """(rows, columns) of packed latents, whose cells are blocks of 2 x 2."""
        side = math.isqrt(latents.shape[1])
        rows, columns = (length // (2 * layout.stride) for length in self.size) if self.size else (side, side)
        if rows * columns != latents.shape[1]:
            shown = f"size {self.size}" if self.size else "a square image"
            raise ConfigError(
                f"{latents.shape[1]} packed latents do not fit {shown}. Accepted: one for each {2 * layout.stride} x "
                f"{2 * layout.stride} pixels. Pass size=(height, width) of the images."
            )
        return rows, columns
