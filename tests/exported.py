"""An exported model, and the tokenizer that it came from."""

import shutil
from pathlib import Path

import pytest

from export_fakes import GOLDEN, filled, handing_on
from stepladder.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return filled(handing_on())


@pytest.fixture(scope="session")
def folder() -> Path:
    return GOLDEN


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    """Of the folder, to damage."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))
