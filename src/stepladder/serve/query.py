"""The parameters of a request, and the error that answers one that cannot be answered."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stepladder.errors import StepladderError

__all__ = ["Query", "RequestError", "whole"]

_YES, _NO = ("true", "1"), ("false", "0", "none")
_SHOWN = 40
"""Characters of a value that a message shows."""


class RequestError(StepladderError):
    """A request that cannot be answered, with the status that says so."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Query:
    """What stands behind the question mark of a URL; every method raises `RequestError` where a value does not fit."""

    values: Mapping[str, Sequence[str]]
    """Every value of each parameter."""

    def last(self, name: str) -> str | None:
        """The last value of a parameter; None without one."""
        values = self.values.get(name, ())
        return values[-1] if values else None

    def choice(self, name: str, accepted: tuple[str, ...], default: str | None = None) -> str:
        """One of the accepted words; needed where there is no default."""
        value = self.last(name)
        if value is None and default is not None:
            return default
        if value is None or value not in accepted:
            said = "is missing" if value is None else f"{value[:_SHOWN]!r} is unknown"
            raise RequestError(f"Parameter {name} {said}. Accepted: {', '.join(accepted)}. Pass one of them.")
        return value

    def flag(self, name: str) -> bool:
        """Whether it is set; by default it is not."""
        value = (self.last(name) or "false").lower()
        if value not in (*_YES, *_NO):
            raise RequestError(
                f"Parameter {name} {value[:_SHOWN]!r} is unknown. Accepted: True, False. Pass one of them."
            )
        return value in _YES

    def number(self, name: str) -> float | None:
        """A finite number; None without one."""
        text = self.last(name)
        if text is None:
            return None
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise RequestError(f"Parameter {name} {text[:_SHOWN]!r} is no finite number. Pass one, or leave it out.")
        return value

    def shape(self) -> list[int]:
        """Of three or four dimensions: one value for each, or a JSON list as the only one."""
        values = list(self.values.get("shape", ()))
        if len(values) == 1 and values[0].startswith("["):
            values = [value.strip() for value in values[0].strip("[] ").split(",")]
        if len(values) not in (3, 4):
            raise RequestError(
                f"Shape has {len(values)} dimensions. Accepted: 4 (B, c, h, w), or 3 of packed latents. Pass shape "
                "once for each dimension."
            )
        return [whole(value, "shape") for value in values]


def whole(text: str, name: str) -> int:
    """A whole number from 1 on."""
    if not text.isascii() or not text.isdigit() or len(text) > 9 or int(text) < 1:
        raise RequestError(
            f"Parameter {name} {text[:_SHOWN]!r} is no whole number from 1 on. Pass the one of the tensor."
        )
    return int(text)
