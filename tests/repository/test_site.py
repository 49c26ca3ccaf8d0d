"""The documentation site: what is generated is current, links leave no page of it, nothing comes from another host."""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure
from mkdocs.exceptions import PluginError

from docs import figures, generated, site_hooks
from examples import toy


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Iterator[Path]:
    """A folder of pages as they would be generated, with a toy that decodes few images."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "concepts.md").write_text("Before\n<!-- toy -->\n<!-- end toy -->\nafter\n", "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generated, "DOCS", folder)
        patch.setattr(toy, "SEEDS", range(8))
        assert generated.main([]) == 0
        yield folder


def test_the_page_of_commands_has_the_help_of_each(pages):
    text = (pages / "commands.md").read_text("utf-8")
    assert re.findall(r"^## stepladder (\w+)$", text, re.MULTILINE)[:2] == ["reconstruct", "encode"]
    assert "--compare" in text
    assert generated.main(["--check"]) == 0


def test_the_page_of_concepts_shows_what_the_toy_prints_and_keeps_its_text(pages):
    text = (pages / "concepts.md").read_text("utf-8")
    assert text.startswith("Before\n<!-- toy -->\n```text\nThe ladder")
    assert text.endswith("```\n<!-- end toy -->\nafter\n")
    assert "Pictures" not in text


def test_a_page_that_somebody_changed_is_out_of_date(pages, capsys):
    page = pages / "commands.md"
    text = page.read_text("utf-8")
    page.write_text(f"{text}more", "utf-8")
    assert generated.main(["--check"]) == 1
    page.write_text(text, "utf-8")
    assert capsys.readouterr().err == "error: docs/commands.md is out of date. Run: make pages\n"


def test_a_picture_is_out_of_date_when_it_shows_something_else(tmp_path, monkeypatch, capsys):
    height = [1.0, 2.0]

    def line() -> Figure:
        figure = Figure(figsize=(2, 2))
        figure.add_subplot().plot(height)
        return figure

    monkeypatch.setattr(figures, "IMAGES", tmp_path)
    monkeypatch.setattr(figures, "FIGURES", {"line": line})
    assert figures.main(["--check"]) == 1
    assert figures.main([]) == 0
    assert figures.main(["--check"]) == 0
    capsys.readouterr()
    height[1] = 0.5
    assert figures.main(["--check"]) == 1
    assert capsys.readouterr().err == "error: docs/images/line.png is out of date. Run: make pages\n"


def test_the_jump_of_the_picture_is_white():
    covariance = figures.block_covariance(figures.jump_parts()[-1])
    assert abs(covariance - covariance[0, 0] * figures.np.eye(4)).max() < 0.02


@pytest.mark.parametrize(
    ("folder", "path", "target"),
    [
        ("docs", "theory.md", "theory.md"),
        ("docs", "../README.md", "index.md"),
        ("docs/api", "../../ARCHITECTURE.md", "architecture.md"),
        (".", "docs/images/jump.png", "images/jump.png"),
        ("docs", "../examples/generate.py", None),
    ],
)
def test_links_between_files_become_links_between_pages(folder, path, target):
    assert site_hooks.site_path(PurePosixPath(folder), path) == target


def test_a_link_out_of_the_site_becomes_its_text_and_one_to_the_web_stays():
    page = SimpleNamespace(file=SimpleNamespace(src_uri="api/parts.md"))
    text = "[a](../../examples/toy.py), [b](https://arxiv.org/abs/1) and [c](../../CONTRIBUTING.md#changes)"
    found = site_hooks.on_page_markdown(text, page)
    assert found == "a, [b](https://arxiv.org/abs/1) and [c](../contributing.md#changes)"


def test_a_page_that_loads_from_another_host_is_refused():
    page = SimpleNamespace(file=SimpleNamespace(src_uri="index.md"))
    own = '<script src="assets/a.js"></script><a href="https://arxiv.org">x</a>'
    assert site_hooks.on_post_page(own, page) == own
    with pytest.raises(PluginError, match=r"index\.md loads from another host.*Put a copy beside the page"):
        site_hooks.on_post_page('<script async src="https://host/a.js"></script>', page)
