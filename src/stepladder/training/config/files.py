"""Configuration files: preset, then file, then `--set a.b=c`.

A file is TOML or JSON. For `stepladder train`, `preset` names the tokenizer to start from; the keys under `tokenizer`
change it. Every key is checked; the resolved configuration is printed by `--dry-run` and saved beside the run, and is
itself a valid file.
"""

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stepladder.configs import structure, unstructure
from stepladder.errors import ConfigError
from stepladder.training.config.recipes import DistillConfig, TrainConfig
from stepladder.training.config.run import RunConfig

__all__ = ["dump", "load_config", "load_distill_config"]


def load_config(path: Path, overrides: Sequence[str] = (), *, presets: Mapping[str, Any]) -> TrainConfig:
    """Reads the configuration of a training run.

    Args:
        path: TOML or JSON file.
        overrides: `a.b=value` pairs; values are JSON, and anything that is not JSON is text.
        presets: Functions that give tokenizer configurations, by name.

    Raises:
        ConfigError: If the file cannot be read, or a key or value is not accepted.
    """
    data = _read(path, overrides)
    preset = data.pop("preset", None)
    if preset is not None:
        if not isinstance(preset, str) or preset not in presets:
            raise ConfigError(f"{path}: Unknown preset '{preset}'. Accepted: {', '.join(presets)}. Choose one of them.")
        changes = data.get("tokenizer", {})
        if not isinstance(changes, dict):
            raise ConfigError(
                f"{path}: Value of 'tokenizer' is {changes!r}. Accepted: a table of keys. Write keys in it."
            )
        data["tokenizer"] = _merge(unstructure(presets[preset]()), changes)
    return structure(data, TrainConfig, where=str(path))


def load_distill_config(path: Path, overrides: Sequence[str] = ()) -> DistillConfig:
    """Reads the configuration of a distillation.

    Raises:
        ConfigError: If the file cannot be read, or a key or value is not accepted.
    """
    return structure(_read(path, overrides), DistillConfig, where=str(path))


def dump(config: RunConfig) -> str:
    """The resolved configuration as JSON, which `load_config` reads back."""
    return json.dumps(unstructure(config), indent=2)


def _read(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    data = _read_file(path)
    for override in overrides:
        _set(data, override)
    return data


def _read_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"Cannot read config {path}: {error.strerror}. Pass a TOML or JSON file.") from error
    except (ValueError, UnicodeDecodeError) as error:
        raise ConfigError(f"Config {path} is not valid TOML or JSON: {error}. Mend it there.") from error
    except RecursionError:
        raise ConfigError(f"Config {path} is nested too deeply. Tables go three deep. Mend it there.") from None
    if not isinstance(data, dict):
        raise ConfigError(f"Config {path} is not a table of keys. Write keys and values.")
    return data


def _set(data: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(
            f"Override '{override}' is not of the form a.b=value. Write for example optimiser.clip_norm=0.5."
        )
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        parsed = value
    *parents, last = key.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise ConfigError(
                f"Override '{override}' reaches into '{parent}', which is a value. Name a key of a table."
            )
    data[last] = parsed


def _merge(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        known = merged.get(key)
        if isinstance(known, dict) and isinstance(value, Mapping) and _of_one_kind(known, value):
            merged[key] = _merge(known, value)
        else:
            merged[key] = value
    return merged


def _of_one_kind(known: Mapping[str, Any], changes: Mapping[str, Any]) -> bool:
    """Whether changes keep the kind of a part; one of another kind has keys of its own."""
    return bool(changes.get("kind", known.get("kind")) == known.get("kind"))
