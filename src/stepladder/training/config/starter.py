"""A commented configuration to begin with, as TOML that `load_config` reads back.

Comments are the docstrings of the fields, so they say what the code says. Values are the defaults; those that must be
changed come first.
"""

import ast
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from textwrap import dedent, wrap
from typing import Any, Literal, get_args, get_origin

from stepladder.data import CropConfig
from stepladder.errors import ConfigError
from stepladder.layouts import TokenLayout
from stepladder.tokenizer_config import TokenizerConfig
from stepladder.training.config.recipes import TrainConfig
from stepladder.training.config.run import DataConfig

__all__ = ["starter"]

_WIDTH = 100


def starter(preset: str, presets: Mapping[str, Callable[[], TokenizerConfig]]) -> str:
    """A configuration that trains a preset, every key with its meaning and its default.

    Raises:
        ConfigError: If there is no such preset.
    """
    if preset not in presets:
        raise ConfigError(f"Unknown preset '{preset}'. Accepted: {', '.join(presets)}. Choose one of them.")
    tokenizer = presets[preset]()
    layout = tokenizer.layout
    crop = CropConfig(size=layout.side) if isinstance(layout, TokenLayout) else CropConfig()
    data = DataConfig(train=["photos/train-*.tar"], validation=["photos/validation-*.tar"], crop=crop)
    config = TrainConfig(tokenizer=tokenizer, data=data)
    lines = [
        f"# A training run of the preset '{preset}'. Name your images under [data], then:",
        "#   stepladder train config.toml --out runs/first",
        "# Every value but the images is the default, so any line may go. Keys under [tokenizer] change the preset.",
        "",
        f'preset = "{preset}"',
        "",
        *_table(config, "", leave_out=("tokenizer",)),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _table(config: Any, name: str, *, leave_out: tuple[str, ...] = ()) -> Iterator[str]:
    """Plain keys first, as TOML wants it, then the tables inside."""
    meanings = _meanings(type(config))
    inside = []
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in leave_out:
            continue
        if is_dataclass(value):
            inside.append(field.name)
            continue
        meaning = " ".join([meanings[field.name], *_accepted(field.type)])
        yield from (f"# {line}" for line in wrap(meaning, _WIDTH))
        yield f"# {field.name} =" if value is None else f"{field.name} = {_toml(value)}"
        yield ""
    for key in inside:
        path = f"{name}.{key}" if name else key
        yield from (f"# {line}" for line in wrap(meanings[key], _WIDTH))
        yield f"[{path}]"
        yield ""
        yield from _table(getattr(config, key), path)


def _meanings(config: type) -> dict[str, str]:
    """The docstring below each field, those of base classes included."""
    found: dict[str, str] = {}
    for base in reversed([kind for kind in config.__mro__ if is_dataclass(kind)]):
        (tree,) = ast.parse(dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for node, after in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                assert isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant), node.target.id
                found[node.target.id] = " ".join(str(after.value.value).split())
    return found


def _accepted(kind: Any) -> list[str]:
    """A sentence with the words that a key takes, where they are known."""
    for inner in (kind, *get_args(kind)):
        if get_origin(inner) is Literal:
            return [f"One of {', '.join(map(_toml, get_args(inner)))}."]
    return []


def _toml(value: Any) -> str:
    """Plain values and lists of them are written alike in JSON and TOML."""
    return json.dumps(list(value) if isinstance(value, tuple) else value)
