"""What a visitor chose: from the controls, or from a link such as `?models=photo,photo-base@8&steps=4&seed=3&size=256`.

A link may come from anybody: values that the page does not offer are ignored, with a note.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stepladder.errors import ConfigError

__all__ = ["AS_IT_IS", "AS_NAMED", "SIZES", "STEPS", "Limits", "Settings", "check_seed", "from_link"]

AS_NAMED = "default"
"""The choice of steps that leaves them to each model."""
AS_IT_IS = "as it is"
"""The choice of size that leaves an image as it is."""
STEPS = (AS_NAMED, "1", "2", "4", "8", "16", "32")
"""Steps in each stage on offer."""
SIZES = (AS_IT_IS, "64", "128", "256", "512", "1024")
"""Sides on offer, to which the central square of an image is resized."""

_MAX_SEED = 2**53 - 1
"""The largest whole number that a browser holds exactly."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the page takes."""

    pixels: int = 2048 * 2048
    """Of an image."""
    file_size: int = 32 * 10**6
    """Bytes of an upload."""
    at_once: int = 2
    """Presses that are worked on at once; others wait."""
    waiting: int = 32
    """Presses that wait; a further one is refused."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of one press of the button, as the controls hold them."""

    models: tuple[str, ...]
    """Names of models that the page offers."""
    steps: str = AS_NAMED
    """One of `STEPS`."""
    seed: int = 0
    size: str = AS_IT_IS
    """One of `SIZES`."""
    example: str = ""
    """The photograph that is chosen; empty where the visitor brought an image."""

    @property
    def steps_per_stage(self) -> int | None:
        """None for those of each model."""
        return None if self.steps == AS_NAMED else int(self.steps)

    @property
    def side(self) -> int | None:
        """None for images as they are."""
        return None if self.size == AS_IT_IS else int(self.size)


def check_seed(seed: Any) -> int:
    """The seed as a whole number.

    Raises:
        ConfigError: If it is none that the page takes.
    """
    if not isinstance(seed, int | float) or not 0 <= seed <= _MAX_SEED or seed != int(seed):
        said = "An empty seed" if seed is None else f"Seed {seed}"
        raise ConfigError(f"{said} is no whole number of 0 to {_MAX_SEED}. Enter one, for example 0.")
    return int(seed)


def from_link(
    query: Mapping[str, str], *, models: Sequence[str], examples: Sequence[str]
) -> tuple[Settings, tuple[str, ...]]:
    """The settings of a link, and a sentence for each part that is not on offer.

    Args:
        query: The parameters of the link.
        models: Those that the page offers; the first of them is chosen where the link names none.
        examples: Names of the photographs; the first of them is chosen where the link names none.
    """
    refused: list[str] = []

    def chosen(key: str, offered: Sequence[str], default: str) -> str:
        value = query.get(key, default)
        if value in offered:
            return value
        refused.append(_refusal(key, value, offered))
        return default

    named = [name for name in query.get("models", "").split(",") if name]
    refused += [_refusal("model", name, models) for name in named if name not in models]
    kept = tuple(name for name in models if name in named) or tuple(models[:1])
    try:
        seed = check_seed(_number(query.get("seed", "0")))
    except ConfigError as error:
        seed = 0
        refused.append(f"The link: {error}")
    settings = Settings(
        models=kept,
        steps=chosen("steps", STEPS, AS_NAMED),
        seed=seed,
        size=chosen("size", SIZES, AS_IT_IS),
        example=chosen("example", examples, examples[0]) if examples else "",
    )
    return settings, tuple(refused)


def _refusal(key: str, value: str, offered: Sequence[str]) -> str:
    shown = value if len(value) <= 40 else f"{value[:40]} ..."
    accepted = ", ".join(offered) or "none"
    return f"The link asks for {key} '{shown}', which is not on this page. Offered: {accepted}. Choose one of them."


def _number(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else text[:40]
