"""What the project needs is declared once, and every version that it is tested with is pinned."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


def direct_requirements() -> list[Requirement]:
    lines = {*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)}
    return [Requirement(line) for line in sorted(lines)]


def pins() -> Iterator[tuple[str, Version]]:
    for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            yield canonicalize_name(name), Version(version)


def test_no_package_is_pinned_twice():
    names = [name for name, _ in pins()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("requirement", direct_requirements(), ids=str)
def test_the_pinned_version_satisfies_what_is_declared(requirement: Requirement):
    pinned = dict(pins())[canonicalize_name(requirement.name)]
    assert pinned in requirement.specifier


def test_torch_is_pinned_by_version_alone_so_that_any_build_of_it_will_do():
    assert not re.search(r"^torch==.*\+", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)


def test_torchvision_is_not_required_by_what_the_makefile_installs():
    assert "torchvision" not in dict(pins())


@pytest.mark.parametrize("page", ["pyproject.toml", "constraints.txt", "Makefile", ".ci/run", "README.md"])
def test_no_page_names_a_package_index(page: str):
    text = (ROOT / page).read_text("utf-8")
    assert not re.search(r"index-url|find-links|--index|trusted-host|download\.pytorch", text)
