"""The examples run: the code of the README, and the demo."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from examples import demo
from stepladder import Tokenizer, presets
from stepladder.demo.photographs import photographs

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tiny() -> Tokenizer:
    return Tokenizer(presets.tiny()).eval()


def test_the_code_of_the_readme_runs(tiny, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    monkeypatch.setattr(Tokenizer, "from_pretrained", lambda name: {"photo": tiny}[name])
    names: dict[str, torch.Tensor] = {}
    exec(code, names)
    assert names["x"].shape == names["images"].shape
    assert capsys.readouterr().out.splitlines() == ["(2, 3, 50, 78)", "(2, 3, 100, 156)", "(2, 3, 200, 312)"]


def test_the_code_of_the_quickstart_runs(tiny, tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "quickstart.md").read_text("utf-8"), re.DOTALL)
    monkeypatch.setattr(Tokenizer, "from_pretrained", lambda name: {"photo": tiny}[name])
    monkeypatch.chdir(tmp_path)
    Image.effect_mandelbrot((40, 24), (-2, -1, 1, 1), 20).convert("RGB").save("photo.jpg")
    names: dict[str, object] = {}
    exec("\n".join(blocks), names)
    assert names["stages"] == [10, 20, 40]
    with Image.open("decoded.png") as decoded:
        assert decoded.size == (40, 24)


def test_the_code_of_the_page_on_guidance_runs():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "guidance.md").read_text("utf-8"), re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    assert names["x"].shape == (1, 3, names["side"], names["side"])


def test_the_demo_prints_a_row_for_each_model_and_writes_a_comparison(tiny, tmp_path, capsys):
    photos = {name: Image.effect_mandelbrot((300, 280), (-2, -1, 1, 1), 20).convert("RGB") for name in ("one", "two")}
    demo.run([demo.Model("tiny", tiny, 1), demo.Model("tiny", tiny, 2)], photos, tmp_path)
    printed = capsys.readouterr().out
    assert "tiny@1" in printed
    assert "tiny@2" in printed
    assert "PSNR" in printed
    assert str(tmp_path / "comparison.png") in printed
    with Image.open(tmp_path / "comparison.png") as picture:
        assert picture.size == (3 * demo.SIDE + 2 * 8, 2 * demo.SIDE + 8 + 32)


def test_the_photographs_of_the_demo_come_with_its_dependencies():
    photos = photographs()
    assert photos.keys() == demo.CUTS.keys()
    assert all(min(photo.size) >= demo.SIDE for photo in photos.values())
