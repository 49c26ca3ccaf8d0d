"""Models on an image, stage by stage: what the page shows, and when. Independent of the web page.

A visitor sees every stage as soon as it is decoded, one model after the other. A model that fails shows a sentence, and
the others continue.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from stepladder.demo.settings import Settings
from stepladder.errors import StepladderError, one_line
from stepladder.images import centre_crop_resize
from stepladder.layouts import TokenLayout
from stepladder.measure.progressive import Fidelity, StageImage, WatchedDecode, compare, watch
from stepladder.memory import is_out_of_memory
from stepladder.tokenizer import Tokenizer

__all__ = ["Offered", "View", "in_words", "run_trial", "run_trials"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Offered:
    """A model that visitors may choose."""

    name: str
    """As the page calls it: `photo`, `photo-base@8`."""
    tokenizer: Tokenizer
    steps: int | None = None
    """Steps per stage where a visitor leaves them to the model; None for those of the tokenizer."""

    @property
    def only_side(self) -> int | None:
        """Side of the images that it takes; None for any."""
        layout = self.tokenizer.layout
        return layout.side if isinstance(layout, TokenLayout) else None

    def warm_up(self) -> None:
        """Decodes a grey square, so that the first visitor does not wait for what is loaded only once."""
        side = self.only_side or 64
        grey = Image.new("RGB", (side, side), "grey")
        *_, last = watch(self.tokenizer, grey, steps=1).stages
        compare(last.image, grey)


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """What there is to see of one model on one image so far."""

    model: str
    original: Image.Image
    """As the model got it."""
    decode: WatchedDecode | None = None
    """None before the image is encoded, and where that failed."""
    stages: tuple[StageImage, ...] = ()
    """Those that are done, coarse first."""
    fidelity: Fidelity | None = None
    """Of the last stage, once it is done."""
    failure: str = ""
    """A sentence, where the model failed."""

    @property
    def bits_per_pixel(self) -> float:
        """Bits of the latent for each pixel of the image."""
        assert self.decode is not None, "there is no latent yet"
        return self.decode.latent_bits / (self.original.width * self.original.height)

    @property
    def seconds(self) -> float:
        """From pixels to pixels so far."""
        assert self.decode is not None, "nothing has happened yet"
        return self.decode.encoding_seconds + sum(stage.seconds for stage in self.stages)


def run_trial(model: Offered, image: Image.Image, settings: Settings) -> Iterator[View]:
    """A model on an image: a view after each stage, the last with its fidelity; or one that says why there is none."""
    original = image if settings.side is None else centre_crop_resize(image, settings.side)
    view = View(model=model.name, original=original)
    try:
        only = model.only_side
        if only is not None and original.size != (only, only):
            raise StepladderError(
                f"{model.name} does not take images of {original.width} x {original.height}. "
                f"It takes {only} x {only} only. Choose the size {only}."
            )
        steps = settings.steps_per_stage or model.steps
        decode = watch(model.tokenizer, original, seed=settings.seed, steps=steps)
        stages: tuple[StageImage, ...] = ()
        for stage in decode.stages:
            stages = (*stages, stage)
            last = len(stages) == decode.num_stages
            fidelity = compare(stage.image, original) if last else None
            view = View(model=model.name, original=original, decode=decode, stages=stages, fidelity=fidelity)
            yield view
    except Exception as error:  # whatever it is, a visitor gets a sentence and the other models
        yield View(model=model.name, original=original, failure=in_words(error, model.name))


def run_trials(models: Sequence[Offered], images: Mapping[str, Image.Image], settings: Settings) -> Iterator[View]:
    """Models on several images: one view of each pair, when it is finished or has failed."""
    for image in images.values():
        for model in models:
            *_, last = run_trial(model, image, settings)
            yield last


def in_words(error: Exception, what: str) -> str:
    """An error as a sentence for a visitor; one that nobody foresaw is logged with its traceback."""
    if isinstance(error, StepladderError):
        return one_line(error)
    if is_out_of_memory(error):
        return f"There is not enough memory for {what} on this image. Smaller images need less. Choose a smaller size."
    _log.error("The page failed on %s", what, exc_info=error)
    return f"{what} failed, which nobody foresaw ({type(error).__name__}). The terminal of the page says more."
