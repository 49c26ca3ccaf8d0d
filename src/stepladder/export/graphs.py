"""What is exported: each part of a tokenizer as a module from tensors to tensors, with the shapes that it takes.

`stepladder.runtime.manifest` says what the graphs are called, take and give. Batch and sides stay free: sides are whole
multiples of the smallest that fits, rows and columns times so many pixels, cells of the latent, or patches. Latents of
tokens fix the size, and leave the batch alone free.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from stepladder.decoders.base import Context
from stepladder.encoders import FrozenEncoder
from stepladder.layouts import GridLayout
from stepladder.sampling.denoiser import Denoised
from stepladder.sampling.flow import expand_time
from stepladder.sampling.grids import time_grids
from stepladder.sampling.path import velocity_from_clean
from stepladder.sampling.randomness import GivenNoise, NoiseKind, ZeroNoise, generator, normal
from stepladder.sampling.sampler import sample
from stepladder.sampling.stages import Stage
from stepladder.tokenizer import Tokenizer

__all__ = ["Graph", "Input", "graphs"]

_FREE = {"batch": Dim("batch", min=1), "rows": Dim("rows", min=1), "columns": Dim("columns", min=1)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Input:
    """One input of a graph."""

    name: str
    channels: int = 0
    """Of an image or a grid; 0 where there are none."""
    cells: int = 0
    """Cells, or pixels, for each of the rows and columns that are free."""
    fixed: tuple[int, ...] = ()
    """Shape without the batch, where it is not free."""
    draw: Callable[[tuple[int, ...], torch.Generator], Tensor] = normal
    """Example values of a shape."""

    def example(self, batch: int, rows: int, columns: int, source: torch.Generator) -> Tensor:
        """Values for so many images, and so many free rows and columns."""
        sides = (rows * self.cells, columns * self.cells) if self.cells else ()
        channels = (self.channels,) if self.channels else ()
        return self.draw((batch, *(self.fixed or (*channels, *sides))), source)

    @property
    def dims(self) -> dict[int, Any]:
        """The free dimensions, for `torch.export`."""
        free = {0: _FREE["batch"]}
        if self.cells:
            first = 2 if self.channels else 1
            free |= {first: self.cells * _FREE["rows"], first + 1: self.cells * _FREE["columns"]}
        return free


@dataclass(frozen=True, kw_only=True, slots=True)
class Graph:
    """One part, ready to be traced. Its module takes a list of tensors, and returns a list."""

    name: str
    module: nn.Module
    inputs: Sequence[Input]
    outputs: Sequence[str]

    def example(self, batch: int, rows: int, columns: int) -> list[Tensor]:
        """Inputs for so many images, and so many free rows and columns."""
        source = generator(0)
        return [each.example(batch, rows, columns, source) for each in self.inputs]

    @property
    def dynamic_shapes(self) -> tuple[list[dict[int, Any]]]:
        """Of the one argument, for `torch.export`."""
        return ([each.dims for each in self.inputs],)


def graphs(tokenizer: Tokenizer, *, steps: Sequence[int], noise: NoiseKind) -> list[Graph]:
    """All graphs of a tokenizer.

    Args:
        tokenizer: On the CPU, in float32; fused where it takes one step in each stage.
        steps: In each stage.
        noise: Whether the decode takes noise.
    """
    decoder, stages = tokenizer.decoder, tokenizer.schedule.stages
    sizes = _Sizes(tokenizer)
    latent = sizes.latent("latent", sizes.image_unit)
    found = [
        Graph(
            name="decoder",
            module=_Decoder(tokenizer, steps, noise),
            inputs=[latent, *(sizes.noise(stage) for stage in stages if noise == "drawn")],
            outputs=["image"],
        ),
    ]
    quantised = tokenizer.codebook_size is not None
    if not isinstance(tokenizer.encoder, FrozenEncoder):  # which is no part of the model
        made = ["latent", "indices"] if quantised else ["latent"]
        found.insert(0, Graph(name="encoder", module=_Encoder(tokenizer), inputs=[sizes.images()], outputs=made))
    if quantised:
        lookup = _Lookup(tokenizer)
        found.append(Graph(name="lookup", module=lookup, inputs=[sizes.indices()], outputs=["latent"]))
    with torch.no_grad():
        example = latent.example(1, 1, 1, generator(0)).to(tokenizer.device)
        context = decoder.network.context(example)
    made = ["features"] if context.initial is None else ["features", "initial"]
    found.append(
        Graph(name="context", module=_Context(tokenizer), inputs=[sizes.latent("latent", sizes.cell)], outputs=made)
    )
    for stage, count in zip(stages, steps, strict=True):
        found.append(_stage_graph(tokenizer, sizes, stage, count, context))
    return found


def _stage_graph(tokenizer: Tokenizer, sizes: "_Sizes", stage: Stage, steps: int, context: Context) -> Graph:
    inputs = [sizes.at_stage("x", stage, 3, stage.downscale)]
    if steps > 1:
        inputs += [Input(name="u", draw=_times), Input(name="next_u", draw=_earlier)]
    inputs.append(sizes.features(stage, context))
    if context.initial is not None:
        inputs.append(sizes.at_stage("initial", stage, 3, 1))
    handed = _handed_on(tokenizer, context)
    if stage.index:
        inputs.append(sizes.at_stage("previous_clean", stage, 3, 2 * stage.downscale))
        for place, (channels, scale) in enumerate(handed):
            inputs.append(sizes.at_stage(f"previous_handed{place}", stage, channels, 2 * stage.downscale * scale))
    outputs = ["clean"]
    if steps > 1 or stage.t_end > 0:
        outputs.append("next_x")
    outputs += [f"handed{place}" for place in range(len(handed))]
    module = _Step(tokenizer, stage, [each.name for each in inputs], outputs)
    return Graph(name=f"stage{stage.index}", module=module, inputs=inputs, outputs=outputs)


class _Sizes:
    """How many pixels or cells of each tensor belong to the smallest part of an image that fits."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.layout = tokenizer.layout
        self.grid = isinstance(self.layout, GridLayout)
        self.cell = self.layout.stride if isinstance(self.layout, GridLayout) else 0
        self.image_unit = math.lcm(tokenizer.decoder.side_multiple, self.cell) if self.grid else 0

    def images(self) -> Input:
        if self.grid:
            return Input(name="images", channels=3, cells=self.cell, draw=_pixels)
        side = self.layout.side_multiple
        return Input(name="images", fixed=(3, side, side), draw=_pixels)

    def latent(self, name: str, unit: int) -> Input:
        """For images of so many pixels, for each free row and column."""
        if self.grid:
            return Input(name=name, channels=self.layout.channels, cells=unit // self.cell)
        return Input(name=name, fixed=self.layout.shape(self._full()))

    def indices(self) -> Input:
        size = self.tokenizer.codebook_size
        assert size is not None

        def draw(shape: tuple[int, ...], source: torch.Generator) -> Tensor:
            return torch.randint(size, shape, generator=source)

        if self.grid:
            return Input(name="indices", cells=1, draw=draw)
        return Input(name="indices", fixed=self.layout.shape(self._full())[:1], draw=draw)

    def noise(self, stage: Stage) -> Input:
        name = f"noise{stage.index}"
        if self.grid:
            return Input(name=name, channels=3, cells=self.image_unit // stage.downscale)
        height, width = self._full()
        return Input(name=name, fixed=(3, height // stage.downscale, width // stage.downscale))

    def at_stage(self, name: str, stage: Stage, channels: int, downscale: int) -> Input:
        """At 1 / `downscale` of the side of the image, where a stage runs."""
        if self.grid:
            return Input(name=name, channels=channels, cells=self._stage_unit(stage) // downscale)
        height, width = self._full()
        return Input(name=name, fixed=(channels, height // downscale, width // downscale))

    def features(self, stage: Stage, context: Context) -> Input:
        if self.grid:
            found, image = context.features, context.initial
            cell = self.cell if image is None else image.shape[-1] // found.shape[-1]
            return self.at_stage("features", stage, found.shape[1], cell)
        return Input(name="features", fixed=tuple(context.features.shape[1:]))

    def _stage_unit(self, stage: Stage) -> int:
        """Pixels of the image in the smallest part of it that a stage can look at: tiles are multiples of this."""
        return math.lcm(self.tokenizer.decoder.network.side_multiple * stage.downscale, self.cell)

    def _full(self) -> tuple[int, int]:
        return self.layout.side_multiple, self.layout.side_multiple


class _Encoder(nn.Module):
    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.encoder, self.bottleneck = tokenizer.encoder, tokenizer.bottleneck

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        out = self.bottleneck(self.encoder(inputs[0]))
        return [out.latent] if out.indices is None else [out.latent, out.indices]


class _Lookup(nn.Module):
    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.bottleneck = tokenizer.bottleneck

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        return [self.bottleneck.from_indices(inputs[0])]


class _Decoder(nn.Module):
    def __init__(self, tokenizer: Tokenizer, steps: Sequence[int], noise: NoiseKind) -> None:
        super().__init__()
        self.decoder, self.layout, self.noise = tokenizer.decoder, tokenizer.layout, noise
        self.grids = time_grids(tokenizer.schedule, steps)

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        latent, *noise = inputs
        *_, end = sample(
            self.decoder.bind(latent),
            self.decoder.schedule,
            size=self.layout.covers(latent),
            generators=GivenNoise(noise) if self.noise == "drawn" else ZeroNoise(latent.device),
            grids=self.grids,
            batch=latent.shape[0],
        )
        return [end.clean.clamp(-1, 1)]


class _Context(nn.Module):
    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.network = tokenizer.decoder.network

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        return self.network.context(inputs[0]).parts()


class _Step(nn.Module):
    """One step of a stage: from u = 1 to 0 where a stage is one step, else between two given times."""

    def __init__(self, tokenizer: Tokenizer, stage: Stage, names: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        self.network, self.stage, self.names, self.outputs = tokenizer.decoder.network, stage, names, outputs

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        given = dict(zip(self.names, inputs, strict=True))
        x = given["x"]
        u = given.get("u", torch.ones(x.shape[0], device=x.device))
        next_u = given.get("next_u", torch.zeros_like(u))
        previous = None
        if self.stage.index:
            handed = tuple(value for name, value in given.items() if name.startswith("previous_handed"))
            previous = Denoised(given["previous_clean"], handed)
        denoised = self.network(x, u, self.stage, Context(given["features"], given.get("initial")), previous)
        found = [denoised.clean]
        if "next_x" in self.outputs:
            velocity = velocity_from_clean(x, denoised.clean, u, self.stage)
            found.append(x + expand_time(next_u - u, x) * velocity)
        return [*found, *denoised.features]


@torch.no_grad()
def _handed_on(tokenizer: Tokenizer, context: Context) -> list[tuple[int, int]]:
    """Channels of the features that a stage hands on, and its side over that of their grid."""
    first = tokenizer.schedule.stages[0]
    side = context.initial.shape[-1] if context.initial is not None else tokenizer.layout.side_multiple
    x = torch.zeros(1, 3, side // first.downscale, side // first.downscale)
    found = tokenizer.decoder.network(x, torch.ones(1), first, context, None)
    return [(part.shape[1], x.shape[-1] // part.shape[-1]) for part in found.features]


def _pixels(shape: tuple[int, ...], source: torch.Generator) -> Tensor:
    return normal(shape, source).mul(0.5).clamp(-1, 1)


def _times(shape: tuple[int, ...], source: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=source) * 0.5 + 0.5


def _earlier(shape: tuple[int, ...], source: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=source) * 0.5
