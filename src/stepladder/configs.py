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
from cattrs.errors import AttributeValidationNote, ClassValidationError, ForbiddenExtraKeysError
from cattrs.gen import make_dict_structure_fn

from stepladder.errors import ConfigError

__all__ = ["structure", "unstructure"]

Config = TypeVar("Config")
Hook: TypeAlias = Callable[[Any, Any], Any]


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
    except ClassValidationError as error:
        path, cause = min(_leaves(error), key=_rank)
        raise ConfigError(f"{where}: {_explain(path, cause)}") from error


def unstructure(config: object) -> dict[str, Any]:
    """Plain data of a config dataclass, every field written out; the inverse of `structure`."""
    data: dict[str, Any] = _CONVERTER.unstructure(config)
    return data


def _leaves(error: BaseException, path: str = "") -> Iterator[tuple[str, BaseException]]:
    """The causes inside nested groups, each with the dotted path at which it arose."""
    for note in getattr(error, "__notes__", []):
        if isinstance(note, AttributeValidationNote):
            path = f"{path}.{note.name}" if path else note.name
    if isinstance(error, ClassValidationError):
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


def _inside(path: str) -> str:
    return f" in '{path}'" if path else ""


def _keys(config: type) -> list[str]:
    return [field.name for field in dataclasses.fields(config)]


def _plain(kind: type) -> Hook:
    accepted = (int, float) if kind is float else (kind,)

    def hook(value: Any, _: Any) -> Any:
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise TypeError(f"{value!r} is not of type {kind.__name__}. Write a value of that type.")
        return kind(value)

    return hook


def _literal(kind: Any) -> Hook:
    accepted = get_args(kind)

    def hook(value: Any, _: Any) -> Any:
        if value not in accepted:
            raise ValueError(f"{value!r} is unknown. Accepted: {', '.join(map(repr, accepted))}. Choose one of them.")
        return value

    return hook


def _sequence(kind: Any, converter: cattrs.Converter) -> Hook:
    """A list of one type, or a tuple of fixed length."""
    kinds, fixed = get_args(kind), get_origin(kind) is tuple

    def hook(value: Any, _: Any) -> Any:
        if not isinstance(value, list | tuple) or (fixed and len(value) != len(kinds)):
            wanted = f"a list of {len(kinds)} values" if fixed else "a list"
            raise TypeError(f"{value!r} is not {wanted}. Write it in square brackets.")
        items = zip(value, kinds if fixed else kinds * len(value), strict=True)
        return get_origin(kind)(converter.structure(item, item_kind) for item, item_kind in items)

    return hook


def _table(config: Any, converter: cattrs.Converter) -> Hook:
    """A dataclass."""
    build = make_dict_structure_fn(config, converter, _cattrs_forbid_extra_keys=True)

    def hook(value: Any, kind: Any) -> Any:
        if not isinstance(value, Mapping):
            raise TypeError(f"{value!r} is no table. Write a table with keys of: {', '.join(_keys(config))}.")
        return build(value, kind)

    return hook


def _choice(union: Any, converter: cattrs.Converter) -> Hook:
    """One of several dataclasses, by the literal default of their field `kind`."""
    configs = {next(f.default for f in dataclasses.fields(c) if f.name == "kind"): c for c in get_args(union)}

    def hook(value: Any, _: Any) -> Any:
        kind = value.get("kind") if isinstance(value, Mapping) else None
        if not isinstance(kind, str) or kind not in configs:
            accepted = ", ".join(map(repr, configs))
            raise TypeError(f"its kind is {kind!r}. Accepted: {accepted}. Set the key 'kind' to one of them.")
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
