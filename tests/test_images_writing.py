import numpy as np
import pytest
from PIL import Image

from stepladder.errors import OutputError
from stepladder.images import (
    load_image,
    save_png,
)


def pixels(image):
    assert image.mode == "RGB"
    return np.asarray(image).tolist()


def photo(height=24, width=32):
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x * 7, y * 9, x + y], axis=-1).astype(np.uint8))


def left_over(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_png_comes_back_as_it_was(tmp_path):
    save_png(photo(), tmp_path / "new" / "a.png")
    assert pixels(load_image(tmp_path / "new" / "a.png")) == pixels(photo())


def test_a_png_is_a_png_whatever_its_name(tmp_path):
    save_png(photo(), tmp_path / "a.jpg")
    assert (tmp_path / "a.jpg").read_bytes().startswith(b"\x89PNG")


def test_existing_output_stays_unless_forced(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("precious")
    with pytest.raises(OutputError, match=r"a\.png exists already\. Name another place, or allow to replace it"):
        save_png(photo(), path)
    assert path.read_text() == "precious"
    save_png(photo(), path, force=True)
    assert load_image(path).size == photo().size
    assert left_over(tmp_path) == ["a.png"]
