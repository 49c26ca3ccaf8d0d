"""Names of models: an embedded name, a folder, or a hub id; `NAME@8` asks for 8 steps in each stage."""

import os
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from huggingface_hub import snapshot_download

from stepladder.bounds import MAX_STEPS
from stepladder.checkpoints import CONFIG_FILE, WEIGHTS_FILE
from stepladder.errors import CheckpointError, ConfigError, brief

__all__ = ["ModelSpec", "commit_of", "embedded_models", "find_model", "parse_model_spec"]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model and how many steps it takes: `photo@8`."""

    name: str
    steps: int | None = None
    """Steps per stage; None for the model's own."""

    def __str__(self) -> str:
        return self.name if self.steps is None else f"{self.name}@{self.steps}"

    @property
    def short(self) -> str:
        """As others may read it: of a folder, without where it lies on this machine."""
        path = Path(self.name)
        return str(ModelSpec(path.resolve().name if path.is_dir() else self.name, self.steps))


def parse_model_spec(text: str) -> ModelSpec:
    """Reads `MODEL` or `MODEL@N`.

    Raises:
        ConfigError: If N is not a whole number of 1 to `MAX_STEPS`, or the name is empty.
    """
    name, at, steps = text.rpartition("@") if "@" in text else (text, "", "")
    if not name:
        raise ConfigError(f"Model '{text}' has no name. Write MODEL or MODEL@N, for example photo@8.")
    if not at:
        return ModelSpec(name)
    if not steps.isascii() or not steps.isdigit() or len(steps) > 9 or not 1 <= int(steps) <= MAX_STEPS:
        raise ConfigError(
            f"Steps per stage '{steps[:20]}' of model '{name}' is not a whole number of 1 to {MAX_STEPS:,}. "
            f"Write {name}@8."
        )
    return ModelSpec(name, int(steps))


def embedded_models() -> tuple[str, ...]:
    """Names of the models that ship inside the package."""
    weights = Path(str(resources.files("stepladder"))) / "weights"
    return tuple(sorted(folder.parent.name for folder in weights.glob(f"*/{CONFIG_FILE}")))


def commit_of(path: Path) -> str | None:
    """The commit to which a file in the cache of the hub client belongs: owner/name in `snapshots/COMMIT/...`."""
    for folder in path.parents:
        if folder.parent.name == "snapshots" and re.fullmatch(r"[0-9a-f]{40}", folder.name):
            return folder.name
    return None


def find_model(
    name: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """Folder of a model: an embedded name, a folder, or a hub id, which is downloaded.

    Args:
        name: Of the model.
        revision: Of a hub id: branch, tag or commit.
        token: For the hub; by default the one that is stored on this machine.
        cache_dir: Where what is fetched is kept; by default where the hub client keeps it.
        local_files_only: Whether to take what was fetched before, and ask nobody.

    Raises:
        CheckpointError: If there is no such model.
    """
    if str(name) in embedded_models():
        return Path(str(resources.files("stepladder"))) / "weights" / str(name)
    if os.path.isdir(name):  # noqa: PTH112 - False, where Path.is_dir raises for a name that no system accepts
        return Path(name)
    if isinstance(name, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith("."):
        try:
            return Path(
                snapshot_download(
                    name,
                    revision=revision,
                    token=token,
                    cache_dir=cache_dir,
                    local_files_only=local_files_only,
                    allow_patterns=[CONFIG_FILE, WEIGHTS_FILE],
                )
            )
        except Exception as error:  # the hub client raises many kinds, offline and online
            raise CheckpointError(
                f"Model '{name}' is no folder here and cannot be fetched from the hub: {brief(error)}. "
                "Check the name, or download it and pass its folder."
            ) from error
    known = ", ".join(embedded_models()) or "none"
    raise CheckpointError(
        f"Unknown model '{name}'. Accepted: an embedded name ({known}), a folder, or a hub id owner/name."
    )
