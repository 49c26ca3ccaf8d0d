"""The program of the page on training runs."""

import re
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[2]


def test_the_code_of_the_page_on_training_follows_a_run(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "training.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Image.effect_mandelbrot((32, 32), (-2, -1, 1, 1), 20).convert("RGB").save("photo.jpg")
    lines = ["preset = 'tiny'", "steps = 2", "batch_size = 1", "log_every = 1", "[data]", "train = ['photo.jpg']"]
    lines += ["validation = ['photo.jpg']", "[data.crop]", "size = 32", "[loss]", "perceptual_weight = 0.0"]
    Path("config.toml").write_text("\n".join(lines), "utf-8")
    exec(code, {})
    said = capsys.readouterr().out
    assert said.count(" of 2: loss ") == 2
    assert "'1': " in said
