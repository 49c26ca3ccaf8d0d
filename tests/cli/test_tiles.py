"""`--tile`."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stepladder.images import load_image


@pytest.fixture
def latents(run, model, tmp_path):
    Image.radial_gradient("L").resize((160, 96)).convert("RGB").save(tmp_path / "rings.png")
    assert run("encode", "rings.png", "--out", "z.safetensors", "--model", model).exit_code == 0
    return Path("z.safetensors")


def test_decode_takes_the_side_of_tiles(run, model, latents):
    for tile in ("0", "32"):
        assert run("decode", latents, "--out", tile, "--model", model, "--tile", tile).exit_code == 0
    whole, tiled = (np.asarray(load_image(Path(tile) / "rings.png"), np.int16) for tile in ("0", "32"))
    assert abs(whole - tiled).max() <= 1
    assert whole.std() > 1


def test_decode_refuses_before_work_what_is_no_side_of_tiles(refused, model, latents):
    arguments = ("decode", latents, "--out", "out", "--model", model, "--tile")
    for tile in (40, -32):
        line = refused(*arguments, tile, code=2)
        assert line == f"Tile side {tile} is not 0 or a multiple of 32. Pass one, for example 32."
    assert not Path("out").exists()


def test_reconstruct_takes_the_side_of_tiles(run, refused, model, latents):
    for tile in ("0", "32"):
        arguments = ("reconstruct", "rings.png", "--out", tile, "--model", model, "--tile", tile)
        assert run(*arguments).exit_code == 0
    whole, tiled = (np.asarray(load_image(Path(tile) / "rings.png"), np.int16) for tile in ("0", "32"))
    assert abs(whole - tiled).max() <= 1
    line = refused("reconstruct", "rings.png", "--out", "out", "--model", model, "--tile", "40", code=2)
    assert line.startswith("Tile side 40 is not 0 or a multiple of 32.")
    assert not Path("out").exists()
