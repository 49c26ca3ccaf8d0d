"""Folders and tar shards that the data tests make."""

import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    def make(files: Mapping[str, bytes], name: str = "photos") -> Path:
        for key, data in files.items():
            path = tmp_path / name / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return tmp_path / name

    return make


@pytest.fixture
def make_tar(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str, members: Mapping[str, bytes], mode: str = "w") -> Path:
        with tarfile.open(tmp_path / name, mode) as archive:
            for key, data in members.items():
                member = tarfile.TarInfo(key)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        return tmp_path / name

    return make
