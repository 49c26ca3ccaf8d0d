"""Strict conversion between configuration dataclasses and plain data (JSON, TOML).

Unknown keys, missing keys and values of another type are errors that name the place, what is accepted and, for a
misspelt key, the likely meaning. Nothing named in a file is ever executed: classes are chosen by the literal `kind`.
"""

import dataclasses
import difflib
from collections.abc import Callable, Iterator, Mapping
from types import UnionType
from typing import Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin

import cattrs
from cattrs.errors import (
    AttributeValidationNote,
    BaseValidationError,
    ForbiddenExtraKeysError,
    IterableValidationNote,
)
from cattrs.gen import make_dict_structure_fn

from stepladder.errors import ConfigError

__all__ = [
    "MAX_DEPTH",
    "MAX_WIDTH",
    "check_between",
    "check_number",
    "quoted",
    "structure",
    "unstructure",
]

MAX_WIDTH = 16_384
"""Most channels or features of one layer: far above any in use, and still a network that can be described."""
MAX_DEPTH = 512
"""Most blocks in a row."""

_LONGEST = 80
"""Characters of a value that a message shows."""

Config = TypeVar("Config")
Hook: TypeAlias = Callable[[Any, Any], Any]


def check_between(config: object, low: float, high: float, *names: str, where: str, usual: str) -> None:
    """Checks fields of a configuration that somebody else may have written: a huge number would exhaust memory.

    Args:
        config: Holds the fields.
        low: The least that is accepted.
        high: The most.
        names: Of the fields; one that is None is left out.
        where: What the configuration is of, for the message.
        usual: Usual values, for the message.

    Raises:
        ConfigError: If a value is outside, or no number.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None:
            check_number(value, low, high, name=f"{where} {name}", usual=usual)


def check_number(value: float, low: float, high: float, *, name: str, usual: str) -> None:
    """The same for one number.

    Raises:
        ConfigError: If it is outside, or no number.
    """
    if not low <= value <= high:
        raise ConfigError(f"{name} {quoted(value)} is outside {low:,} to {high:,}. Usual values: {usual}.")


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
    except BaseValidationError as error:
        path, cause = min(_leaves(error), key=_rank)
        raise ConfigError(f"{where}: {_explain(path, cause)}") from error
    except RecursionError:
        raise ConfigError(f"{where}: it is nested too deeply. Write each value where its key stands.") from None


def unstructure(config: object) -> dict[str, Any]:
    """Plain data of a config dataclass, every field written out; the inverse of `structure`."""
    data: dict[str, Any] = _CONVERTER.unstructure(config)
    return data


def _leaves(error: BaseException, path: str = "") -> Iterator[tuple[str, BaseException]]:
    """The causes inside nested groups, each with the dotted path at which it arose."""
    for note in getattr(error, "__notes__", []):
        if isinstance(note, AttributeValidationNote | IterableValidationNote):
            name = note.name if isinstance(note, AttributeValidationNote) else str(note.index)
            path = f"{path}.{name}" if path else name
    if isinstance(error, BaseValidationError):
        for child in error.exceptions:
            yield from _leaves(child, path)
    else:
        yield path, error


def _rank(leaf: tuple[str, BaseException]) -> bool:
    """Unknown keys first: a key that is missing is often one that is misspelt."""
    return not isinstance(leaf[1], ForbiddenExtraKeysError)


def _explain(path: str, cause: BaseException) -> str:
    if isinstance(cause, ForbiddenExtraKeysError):
        key = sorted(cause.extra_fields)[0]
        accepted = _keys(cause.cl)
        close = difflib.get_close_matches(key, accepted, n=1)
        hint = f"Did you mean '{close[0]}'?" if close else "Remove it."
        return f"Unknown key '{key}'{_inside(path)}. Accepted: {', '.join(accepted)}. {hint}"
    if isinstance(cause, KeyError):
        return f"Key '{cause.args[0]}' is missing{_inside(path.rpartition('.')[0])}. It has no default. Add it."
    if isinstance(cause, ConfigError):
        return str(cause)
    return f"Value of '{path}' does not fit: {cause}"


def quoted(value: object) -> str:
    """A value as a message shows it: whoever wrote the file may have written a million digits."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**_LONGEST:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _inside(path: str) -> str:
    return f" in '{path}'" if path else ""


def _keys(config: type) -> list[str]:
    return [field.name for field in dataclasses.fields(config)]


def _plain(kind: type) -> Hook:
    accepted = (int, float) if kind is float else (kind,)

    def hook(value: Any, _: Any) -> Any:
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise TypeError(f"{quoted(value)} is not of type {kind.__name__}. Write a value of that type.")
        return kind(value)

    return hook


def _literal(kind: Any) -> Hook:
    accepted = get_args(kind)

    def hook(value: Any, _: Any) -> Any:
        if value not in accepted:
            known = ", ".join(map(repr, accepted))
            raise ValueError(f"{quoted(value)} is unknown. Accepted: {known}. Choose one of them.")
        return value

    return hook


def _sequence(kind: Any, converter: cattrs.Converter) -> Hook:
    """A list of one type, or a tuple of fixed length."""
    kinds, fixed = get_args(kind), get_origin(kind) is tuple

    def hook(value: Any, _: Any) -> Any:
        if not isinstance(value, list | tuple) or (fixed and len(value) != len(kinds)):
            wanted = f"a list of {len(kinds)} values" if fixed else "a list"
            raise TypeError(f"{quoted(value)} is not {wanted}. Write it in square brackets.")
        items = zip(value, kinds if fixed else kinds * len(value), strict=True)
        return get_origin(kind)(converter.structure(item, item_kind) for item, item_kind in items)

    return hook


def _table(config: Any, converter: cattrs.Converter) -> Hook:
    """A dataclass."""
    build = make_dict_structure_fn(config, converter, _cattrs_forbid_extra_keys=True)

    def hook(value: Any, kind: Any) -> Any:
        if not isinstance(value, Mapping):
            raise TypeError(f"{quoted(value)} is no table. Write a table with keys of: {', '.join(_keys(config))}.")
        return build(value, kind)

    return hook


def _choice(union: Any, converter: cattrs.Converter) -> Hook:
    """One of several dataclasses, by the literal default of their field `kind`."""
    configs = {next(f.default for f in dataclasses.fields(c) if f.name == "kind"): c for c in get_args(union)}

    def hook(value: Any, _: Any) -> Any:
        kind = value.get("kind") if isinstance(value, Mapping) else None
        if not isinstance(kind, str) or kind not in configs:
            accepted = ", ".join(map(repr, configs))
            wrong = "its key 'kind' is missing" if kind is None else f"its kind is {quoted(kind)}"
            if not isinstance(value, Mapping):
                wrong = f"{quoted(value)} is no table of keys"
            raise TypeError(f"{wrong}. Accepted: {accepted}. Set the key 'kind' to one of them.")
        return converter.structure(value, configs[kind])

    return hook


def _is_literal(kind: Any) -> bool:
    return get_origin(kind) is Literal


def _is_sequence(kind: Any) -> bool:
    return get_origin(kind) in (list, tuple)


def _is_choice(kind: Any) -> bool:
    return get_origin(kind) in (Union, UnionType) and all(map(dataclasses.is_dataclass, get_args(kind)))


def _make_converter() -> cattrs.Converter:
    converter = cattrs.Converter()
    for kind in (int, float, str, bool):
        converter.register_structure_hook(kind, _plain(kind))
    for accepts, hook in (
        (_is_literal, _literal),
        (_is_sequence, lambda kind: _sequence(kind, converter)),
        (dataclasses.is_dataclass, lambda kind: _table(kind, converter)),
        (_is_choice, lambda kind: _choice(kind, converter)),
    ):
        converter.register_structure_hook_factory(accepts, hook)
    return converter


_CONVERTER = _make_converter()
