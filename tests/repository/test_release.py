"""Version, release notes, citation and continuous integration agree with the package."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

import stepladder

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8"))
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"))
TORCH = {
    Requirement(line).name: Requirement(line).specifier for line in PROJECT["dependencies"] if line.startswith("torch")
}["torch"]


def pinned(name: str) -> str:
    return re.findall(rf"^{name}==(.+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)[0]


def citation() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))


def test_the_release_notes_begin_with_the_version_of_the_package():
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert headings[0] == stepladder.__version__
    assert len(headings) == len(set(headings))


def test_the_citation_names_version_licence_and_authors_of_the_package():
    assert citation()["version"] == stepladder.__version__
    assert citation()["license"] == PROJECT["license"]
    assert citation()["authors"] == PROJECT["authors"]


def test_the_citation_and_the_readme_name_the_same_papers():
    readme = (ROOT / "README.md").read_text("utf-8")
    papers = {paper["title"]: paper["url"] for paper in citation()["references"]}
    assert papers == dict(re.findall(r"title\s+= \{(.+?)\},.*?url\s+= \{(.+?)\}", readme, re.DOTALL))


def test_every_supported_python_and_the_oldest_and_the_pinned_torch_are_tested():
    matrix = WORKFLOW["jobs"]["test"]["strategy"]["matrix"]
    classifiers = re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["classifiers"]))
    (oldest,) = [part.version for part in TORCH if part.operator == ">="]
    assert matrix["python"] == classifiers
    assert matrix["torch"] == [f"{oldest}.0", pinned("torch")]


def test_the_workflow_runs_what_runs_here():
    assert ".ci/run" in [step.get("run") for step in WORKFLOW["jobs"]["test"]["steps"]]
    assert (ROOT / ".ci" / "run").is_file()


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_an_issue_template_has_what_a_forge_needs_of_one(path: Path):
    template = yaml.safe_load(path.read_text("utf-8"))
    assert template.keys() >= {"name", "description", "body"}
    names = [part["id"] for part in template["body"]]
    assert len(names) == len(set(names))
    assert all(part["type"] == "textarea" and part["attributes"]["label"] for part in template["body"])
