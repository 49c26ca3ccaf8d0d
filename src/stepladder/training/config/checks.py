"""Ranges of configuration values."""

from stepladder.configs import quoted
from stepladder.errors import ConfigError

__all__ = ["check_at_least", "check_pixels", "check_share"]

_MAX_PIXELS = 2**32
"""Most pixels that are held as floats at once, in 48 GiB."""


def check_at_least(config: object, least: int, *names: str, where: str = "", most: int | None = None) -> None:
    """Checks that fields are at least so much, and finite; no more than `most`, where they take memory."""
    for name in names:
        value = getattr(config, name)
        if not least <= value <= (2**63 - 1 if most is None else most):
            place = f"{where}.{name}" if where else name
            above = "too large or no number" if most is None else f"more than {most:,}"
            wrong = f"less than {least}" if value < least else above
            accepted = f"{least} or more" if most is None else f"{least} to {most:,}"
            raise ConfigError(f"{place} {quoted(value)} is {wrong}. Pass {accepted}.")


def check_pixels(images: int, side: int, *, names: tuple[str, str]) -> None:
    """Checks that so many images of one side, which two keys give, can be held at once."""
    if images * side**2 > _MAX_PIXELS:
        fitting = max(1, _MAX_PIXELS // side**2)
        raise ConfigError(
            f"{names[0]} {images} and {names[1]} {side} take {12 * images * side**2 / 2**30:,.0f} GiB as floats. "
            f"Accepted: up to 48 GiB. Pass {names[0]} of up to {fitting:,}, or a smaller side."
        )


def check_share(value: float, name: str) -> None:
    """Checks that a value is a share of the run."""
    if not 0 <= value <= 1:
        raise ConfigError(f"{name} {value} is outside [0, 1]. It is a share of the run; usual values: 0 to 0.5.")
