"""The picture of crops: rows of crops, columns of models, from the images and seeds of the evaluation protocol."""

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import crops
from stepladder.data import evaluation_images, open_source
from stepladder.images import to_pil
from stepladder.presets import tiny
from stepladder.tokenizer import Tokenizer

LAYOUT = """
size = 32
width = 12
height = 8
scale = 3
models = ["{model}@1", "{model}"]

[[crops]]
name = "first"
image = "b.png"
left = 4
top = 8

[[crops]]
name = "second"
image = "0"
left = 20
top = 24
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = Tokenizer(tiny())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in tokenizer.parameters():  # fresh last layers are zero, and would ignore the noise
            parameter.normal_(0, 0.1, generator=generator)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def place(tmp_path, model):
    """A folder with two images and a layout."""
    (tmp_path / "photos").mkdir()
    for seed, name in enumerate("ab"):
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{name}.png")
    (tmp_path / "layout.toml").write_text(LAYOUT.format(model=model.as_posix()), "utf-8")
    return tmp_path


def make(place, *more):
    return crops.main([str(place / "photos"), str(place / "out.png"), "--layout", str(place / "layout.toml"), *more])


def cell(picture, row, column):
    left, top = crops.MARGIN + column * (36 + crops.GAP), crops.HEADING + row * (24 + crops.GAP)
    return np.asarray(picture.crop((left, top, left + 36, top + 24)))


def test_a_cell_is_the_crop_with_each_pixel_three_times_as_large(place, capsys):
    assert make(place) == 0
    with Image.open(place / "out.png") as picture:
        assert picture.size == (crops.MARGIN + 3 * 36 + 2 * crops.GAP, crops.HEADING + 2 * 24 + crops.GAP)
        (_, a), (_, b) = evaluation_images(open_source(place / "photos"), size=32)
        for row, (image, box) in enumerate([(b, (4, 8, 16, 16)), (a, (20, 24, 32, 32))]):
            expected = np.asarray(to_pil(image).crop(box)).repeat(3, axis=0).repeat(3, axis=1)
            assert np.array_equal(cell(picture, row, 0), expected)
    assert "out.png: 152 x 100, " in capsys.readouterr().out


def test_an_image_is_decoded_with_its_place_as_the_seed_as_it_is_evaluated(place, model):
    assert make(place) == 0
    tokenizer = Tokenizer.from_pretrained(model)
    (_, _), (_, b) = evaluation_images(open_source(place / "photos"), size=32)
    with Image.open(place / "out.png") as picture:
        for column, steps in [(1, 1), (2, None)]:
            decoded = tokenizer.decode(tokenizer.encode(b[None]), seeds=[1], steps=steps)[0]
            expected = np.asarray(to_pil(decoded).crop((4, 8, 16, 16))).repeat(3, axis=0).repeat(3, axis=1)
            assert np.abs(cell(picture, 0, column).astype(int) - expected).max() <= 1


def test_columns_and_rows_have_names(place):
    assert make(place) == 0
    with Image.open(place / "out.png") as picture:
        heading = np.asarray(picture.crop((crops.MARGIN, 0, picture.width, crops.HEADING)))
        margin = np.asarray(picture.crop((0, crops.HEADING, crops.MARGIN, picture.height)))
    assert heading.min() < 64
    assert margin.min() < 64


def test_the_picture_is_not_replaced_without_force(place, capsys):
    (place / "out.png").write_text("precious")
    assert make(place) == 1
    assert "exists already" in capsys.readouterr().err
    assert (place / "out.png").read_text() == "precious"
    assert make(place, "--force") == 0


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("left = 20", "left = 21", "Crop 'second' at 21, 24 leaves the image. It is 12 x 8 of 32 x 32. Move it"),
        ('"b.png"', '"c.png"', "No image 'c.png' in "),
        ('"0"', '"2"', "No image '2' in "),
        ("height = 8", "height = 0", "Crops of 12 x 0, 3 times as large, are empty."),
        ("height = 8", "hight = 8", "layout.toml: Unknown key 'hight'."),
        ("height = 8", "height =", "Cannot read layout "),
        ("@1", "@0", "Steps per stage '0'"),
        ('models = ["', 'models = []  # "', "No crop or no model to show."),
    ],
)
def test_a_layout_that_does_not_fit_is_one_line(place, capsys, old, new, said):
    layout = place / "layout.toml"
    layout.write_text(layout.read_text("utf-8").replace(old, new, 1), "utf-8")
    assert make(place) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]
    assert not (place / "out.png").exists()
