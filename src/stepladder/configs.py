"""Strict conversion between configuration dataclasses and plain data (JSON, TOML).

Unknown keys, missing keys and values of another type are errors that name the place, what is accepted and, for a
misspelt key, the likely meaning. Nothing named in a file is ever executed: classes are chosen by the literal `kind`.
"""

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import cattrs
from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError, IterableValidationError

from stepladder.errors import ConfigError

__all__ = ["structure", "unstructure"]

Config = TypeVar("Config")


def structure(data: Mapping[str, Any], config: type[Config], *, where: str) -> Config:
    """Builds a config dataclass from plain data.

    Args:
        data: Nested mappings, lists and plain values.
        config: The dataclass.
        where: What is being read, for messages, for example a file name.

    Raises:
        ConfigError: If a key is unknown or missing, or a value does not fit.
    """
    try:
        return _CONVERTER.structure(data, config)
    except (ClassValidationError, IterableValidationError) as error:
        path, cause = next(_leaves(error))
        raise ConfigError(f"{where}: {_explain(path, cause)}") from error


def unstructure(config: object) -> dict[str, Any]:
    """Plain data of a config dataclass, every field written out; the inverse of `structure`."""
    data: dict[str, Any] = _CONVERTER.unstructure(config)
    return data


def _leaves(error: BaseException, path: str = "") -> Iterator[tuple[str, BaseException]]:
    """The causes inside nested groups, each with the dotted path at which it arose."""
    for note in getattr(error, "__notes__", []):
        name = getattr(note, "name", getattr(note, "index", None))
        if name is not None:
            path = f"{path}.{name}" if path else str(name)
    if isinstance(error, ClassValidationError | IterableValidationError):
        for child in error.exceptions:
            yield from _leaves(child, path)
    else:
        yield path, error


def _explain(path: str, cause: BaseException) -> str:
    at = f" in '{path}'" if path else ""
    if isinstance(cause, ForbiddenExtraKeysError):
        key = sorted(cause.extra_fields)[0]
        accepted = [field.name for field in dataclasses.fields(cause.cl)]
        close = difflib.get_close_matches(key, accepted, n=1)
        hint = f" Did you mean '{close[0]}'?" if close else " Remove it."
        return f"Unknown key '{key}'{at}. Accepted: {', '.join(accepted)}.{hint}"
    if isinstance(cause, KeyError):
        return f"Key '{cause.args[0]}' is missing{at}. It has no default: add it."
    if isinstance(cause, ConfigError):
        return str(cause)
    return f"Value of '{path}' does not fit: {cause}"


def _plain(kind: type) -> Any:
    accepted = (int, float) if kind is float else (kind,)

    def hook(value: Any, _: Any) -> Any:
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise TypeError(f"{value!r} is not of type {kind.__name__}. Write a value of that type.")
        return kind(value)

    return hook


def _make_converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)
    for kind in (int, float, str, bool):
        converter.register_structure_hook(kind, _plain(kind))
    return converter


_CONVERTER = _make_converter()
