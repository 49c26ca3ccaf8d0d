import math

import numpy as np
import pytest
from PIL import Image

from stepladder.data import CropConfig, random_crop
from stepladder.errors import ConfigError


def ramp(width: int, height: int) -> Image.Image:
    """Red tells the column, green the row."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y, 0 * x], axis=-1).astype(np.uint8))


def test_at_scale_one_a_crop_is_an_exact_copy_of_a_window():
    image = ramp(50, 40)
    config = CropConfig(size=16, min_scale=1, max_scale=1, flip=False)
    for seed in range(20):
        crop = np.asarray(random_crop(image, config, np.random.default_rng(seed)))
        left, top = crop[0, 0, :2]
        np.testing.assert_array_equal(crop, np.asarray(image)[top : top + 16, left : left + 16])


def test_half_of_the_crops_are_mirrored():
    image = ramp(50, 40)
    config = CropConfig(size=16, min_scale=1, max_scale=1)
    rng = np.random.default_rng(0)
    crops = (np.asarray(random_crop(image, config, rng)).astype(int) for _ in range(400))
    mirrored = sum(crop[0, 0, 0] > crop[0, -1, 0] for crop in crops)
    assert 160 < mirrored < 240


def test_scales_are_log_uniform_between_their_limits():
    image = ramp(250, 250)
    config = CropConfig(size=16, min_scale=2, max_scale=8, flip=False)
    rng = np.random.default_rng(0)
    scales = []
    for _ in range(400):
        crop = np.asarray(random_crop(image, config, rng)).astype(float)
        scales.append((crop[8, 12, 0] - crop[8, 3, 0]) / 9)  # columns of the photograph per column of the crop
    assert min(scales) > 1.8
    assert max(scales) < 8.3
    assert np.median(scales) == pytest.approx(math.sqrt(2 * 8), rel=0.12)


@pytest.mark.parametrize("size", [(250, 200), (120, 250)])
def test_scales_relative_to_the_short_side_show_that_share_of_it_at_any_resolution(size):
    image = ramp(*size)
    config = CropConfig(size=16, relative_to="short side", min_scale=0.8, max_scale=1.0, flip=False)
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(300):
        crop = np.asarray(random_crop(image, config, rng)).astype(float)
        shares.append((crop[12, 8, 1] - crop[3, 8, 1]) / 9 * 16 / min(size))
    assert 0.78 < min(shares) < 0.82
    assert 0.98 < max(shares) < 1.02


def test_positions_reach_all_borders_of_the_image():
    image = ramp(20, 18)
    config = CropConfig(size=16, min_scale=1, max_scale=1, flip=False)
    rng = np.random.default_rng(0)
    corners = {tuple(np.asarray(random_crop(image, config, rng))[0, 0, :2]) for _ in range(300)}
    assert corners == {(x, y) for x in range(5) for y in range(3)}


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (300, 7), (15, 16)])
def test_an_image_smaller_than_the_crop_is_enlarged(size):
    crop = random_crop(ramp(*size), CropConfig(size=16), np.random.default_rng(0))
    assert crop.size == (16, 16)


def test_the_same_generator_state_gives_the_same_crop():
    image = ramp(50, 40)
    first, second = (random_crop(image, CropConfig(size=8), np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(np.asarray(first), np.asarray(second))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"size": 0}, "Crop size is 0. It must be 1 to 16,384 pixels"),
        ({"min_scale": 0.0}, "Crop scales are 0.0 to 2.5. They must satisfy 0 < min_scale <= max_scale"),
        ({"min_scale": 3.0}, "Crop scales are 3.0 to 2.5"),
        ({"max_scale": math.inf}, "Crop scales are 1.0 to inf"),
        ({"relative_to": "short side"}, "Crop scales are 1.0 to 2.5 of the short side. They must be at most 1"),
        ({"crops_per_image": 0}, "Crops per image are 0. They must be 1 to 65,536"),
    ],
)
def test_a_config_out_of_range_is_refused(change, text):
    with pytest.raises(ConfigError, match=text):
        CropConfig(**change)
