"""Decoders in a benchmark, each prepared to decode random latents of one size.

A contender describes itself in numbers and prepares for a setting: it moves to the device, draws a latent, and returns
its decode. Decoders of tokenizers and networks of other libraries become contenders here.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stepladder.layouts import GridLayout, Layout
from stepladder.sampling.randomness import NoiseKind, generator, normal
from stepladder.tokenizer import Tokenizer

__all__ = ["Contender", "Decode", "Setting", "single_pass_contender", "tokenizer_contender"]

Decode: TypeAlias = Callable[[], Iterable[object]]
"""Decodes one batch, and yields at the end of each stage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """The setting of a decode."""

    size: int
    """Side of the square images."""
    batch: int
    """Images decoded at once."""
    dtype: torch.dtype
    """What the networks compute in."""
    compile: bool
    """Whether networks are compiled."""
    device: torch.device
    seed: int
    """Of latents, and of the noise of the first image."""
    noise: NoiseKind = "drawn"
    """Where the noise of tokenizers comes from."""

    def latent(self, layout: Layout) -> Float[Tensor, "b ..."]:
        """White noise in the shape of the latent of such images.

        Raises:
            ImageError: If there is no latent of images of this size.
        """
        layout.check_size((self.size, self.size))
        return normal((self.batch, *layout.shape((self.size, self.size))), generator(self.seed, self.device))


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """A decoder that is measured."""

    name: str
    steps_per_stage: int
    stages: int
    network_evaluations: int
    """Of the decoder's network, in one decode."""
    decoder_parameters: int
    prepare: Callable[[Setting], Decode]
    """Moves the decoder to its place, draws a latent, and returns the decode of it."""
    side_multiple: int = 1
    """Image sides must be multiples of this."""
    layout: Layout | None = None
    """Of the latents of a tokenizer, which may take images of one side only."""


def tokenizer_contender(name: str, tokenizer: Tokenizer, steps: int | None = None) -> Contender:
    """The decoder of a tokenizer, with `steps` in each stage; the tokenizer's own number by default.

    Networks compute in the precision that is asked for; times and noise stay float32. It is moved, converted, and
    compiled, in place.
    """
    taken = tokenizer.steps_per_stage if steps is None else steps

    def prepare(setting: Setting) -> Decode:
        tokenizer.to(setting.device).to_precision(setting.dtype).eval()
        if setting.compile:
            tokenizer.compile_decoder(any_size=False)
        latent = setting.latent(tokenizer.layout)
        seeds = range(setting.seed, setting.seed + setting.batch) if setting.noise == "drawn" else None

        def decode() -> Iterator[Tensor]:
            yield from tokenizer.decode_progressively(
                latent, seeds=seeds, steps=taken, size=(setting.size, setting.size), noise=setting.noise
            )

        return decode

    return Contender(
        name=name,
        steps_per_stage=taken,
        stages=tokenizer.schedule.num_stages,
        network_evaluations=tokenizer.network_evaluations(taken),
        decoder_parameters=_parameters(tokenizer.decoder),
        prepare=prepare,
        layout=tokenizer.layout,
    )


def single_pass_contender(name: str, network: nn.Module, *, latent_channels: int, stride: int) -> Contender:
    """A network that decodes latents (B, c, H/f, W/f) in one evaluation, such as that of another library.

    In another precision than float32 its weights are converted. It is moved and converted in place.
    """

    def prepare(setting: Setting) -> Decode:
        network.to(setting.device, setting.dtype).eval()
        latent = setting.latent(GridLayout(latent_channels, stride)).to(setting.dtype)

        def call() -> Tensor:
            image: Tensor = network(latent)
            return image

        run = torch.compile(call, fullgraph=True, dynamic=False) if setting.compile else call
        return lambda: iter([run()])

    return Contender(
        name=name,
        steps_per_stage=1,
        stages=1,
        network_evaluations=1,
        decoder_parameters=_parameters(network),
        prepare=prepare,
        side_multiple=stride,
    )


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
