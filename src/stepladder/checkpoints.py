"""Checkpoint folders: `config.json` + `model.safetensors`.

`config.json` holds `format_version`, the configuration under `tokenizer`, and the SHA-256 of the weights, so that a
damaged or mixed-up file is an error instead of a bad picture. Nothing in a checkpoint is executed, and loading is
strict: every weight is expected and every expected weight is there.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from stepladder.errors import CheckpointError, OutputError
from stepladder.files import parse_json, write_atomically

__all__ = ["CONFIG_FILE", "FORMAT_VERSION", "WEIGHTS_FILE", "read_checkpoint", "weights_digest", "write_checkpoint"]

FORMAT_VERSION = 1
"""Increases with every change that older code cannot read."""
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


def write_checkpoint(
    folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor], *, dtype: torch.dtype = torch.float32
) -> None:
    """Writes a checkpoint folder; existing files are replaced, each atomically, the description last.

    Args:
        folder: Created if it does not exist.
        config: Plain data of the tokenizer's configuration.
        weights: State of the module.
        dtype: Type of stored floating-point weights; half precision halves the file.

    Raises:
        OutputError: If a file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"Cannot make folder {folder}: {error.strerror}. Choose another folder.") from error
    stored = {
        name: (value.to(dtype) if value.is_floating_point() else value).detach().cpu().contiguous()
        for name, value in weights.items()
    }
    blob = save(stored, metadata={"format": "pt"})
    description = {"format_version": FORMAT_VERSION, "sha256": hashlib.sha256(blob).hexdigest(), "tokenizer": config}
    text = json.dumps(description, indent=2) + "\n"
    write_atomically(folder / WEIGHTS_FILE, lambda place: place.write_bytes(blob), force=True)
    write_atomically(folder / CONFIG_FILE, lambda place: place.write_text(text, encoding="utf-8"), force=True)


def read_checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Reads configuration and weights (in float32) of a checkpoint folder.

    Raises:
        CheckpointError: If a file is missing or damaged, of another format version, or a weight is not finite.
    """
    description = _read_description(folder / CONFIG_FILE)
    weights_file = folder / WEIGHTS_FILE
    try:
        blob = weights_file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"Cannot read {weights_file}: {error.strerror}. Restore the file.") from error
    if hashlib.sha256(blob).hexdigest() != description["sha256"]:
        raise CheckpointError(
            f"{weights_file} is damaged: its SHA-256 is not the one in {CONFIG_FILE}. Download or export it again."
        )
    try:
        weights = load(blob)
    except SafetensorError as error:
        raise CheckpointError(f"{weights_file} is not a safetensors file ({error}). Export the model again.") from error
    floats = {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
    for name, value in floats.items():
        _check_weight(name, value, weights_file)
    return description["tokenizer"], floats


def weights_digest(names: Sequence[str], modules: Sequence[nn.Module]) -> str:
    """Short hash of names and of weights, rounded to half precision."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode())
    for module in modules:
        for name, value in sorted(module.state_dict().items()):
            digest.update(name.encode())
            stored = value.detach().to("cpu", torch.float16) + 0  # -0 becomes 0, as it does in averages
            digest.update(stored.numpy().tobytes())
    return digest.hexdigest()[:16]


def _check_weight(name: str, value: Tensor, file: Path) -> None:
    """Refuses weights that are not finite real numbers; they would decode to black pictures."""
    if value.is_complex():
        raise CheckpointError(f"Weight '{name}' of {file} is complex. Weights are real. Export the model again.")
    if not value.isfinite().all():
        raise CheckpointError(
            f"Weight '{name}' of {file} holds NaN or infinity. Weights are finite. Use another copy of the model, or a "
            "checkpoint from before its training broke."
        )


def _read_description(file: Path) -> dict[str, Any]:
    try:
        description = parse_json(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"Cannot read {file}: {error.strerror}. A model folder holds it.") from error
    except ValueError as error:
        raise CheckpointError(f"{file} is damaged: it is not JSON ({error}). Download or export it again.") from error
    version = description.get("format_version") if isinstance(description, dict) else None
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{file} has format version {version}. Accepted: {FORMAT_VERSION}. "
            "Use the release of stepladder that wrote it, or export the model again."
        )
    for key, kind in (("sha256", str), ("tokenizer", dict)):
        if not isinstance(description.get(key), kind):
            raise CheckpointError(f"{file} is damaged: '{key}' is missing. Download or export it again.")
    return dict(description)
