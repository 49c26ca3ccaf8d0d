"""Weights of feature networks that are not part of any package: found on disk, never downloaded."""

import os
from pathlib import Path

import torch

from stepladder.errors import MissingDependencyError

__all__ = ["local_weights"]


def local_weights(file: str, *, variable: str, needed_by: str) -> Path:
    """The file that an environment variable names, or the one of this name in torch's hub cache.

    Args:
        file: Its name.
        variable: The environment variable.
        needed_by: The metric and its network, for the message: "LPIPS needs the VGG16 weights".

    Raises:
        MissingDependencyError: If it is not there.
    """
    named = os.environ.get(variable)
    path = Path(named) if named else Path(torch.hub.get_dir()) / "checkpoints" / file
    if not path.is_file():
        raise MissingDependencyError(
            f"{needed_by} {file}, which are not at {path}. They are never fetched. Put the file there, or name it in "
            f"the variable {variable}."
        )
    return path
