import io
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from image_fakes import ListedImages, encoded
from stepladder.data import evaluation_images
from stepladder.errors import ConfigError, DataError
from stepladder.images import centre_crop_resize, load_image, to_tensor


def test_images_are_cut_by_the_pinned_protocol_in_the_order_of_the_source():
    data = [encoded(n, width=30 + n, height=20) for n in range(3)]
    items = list(evaluation_images(ListedImages(data), size=16))
    assert [key for key, _ in items] == ["0.png", "1.png", "2.png"]
    for (_, image), original in zip(items, data, strict=True):
        assert image.shape == (3, 16, 16)
        assert torch.equal(image, to_tensor(centre_crop_resize(load_image(original), 16)))


def test_an_image_of_the_wanted_size_is_not_resampled():
    data = encoded(5, width=16, height=16)
    ((_, image),) = evaluation_images(ListedImages([data]), size=16)
    pixels = ((image + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(pixels, np.asarray(load_image(data)))


def test_the_limit_counts_readable_images_and_unreadable_ones_are_counted_in_one_warning(caplog):
    source = ListedImages([b"", encoded(1), encoded(2), b"x", encoded(4), encoded(5)])
    images = evaluation_images(source, size=8, limit=3)
    with caplog.at_level(logging.WARNING, "stepladder"):
        assert [key for key, _ in images] == ["1.png", "2.png", "4.png"]
    assert [item.key for item in images.unreadable] == ["0.png", "3.png"]
    (record,) = caplog.records
    assert "2 unreadable images of 6 skipped" in record.getMessage()


def test_images_can_be_iterated_again():
    images = evaluation_images(ListedImages([b"", encoded(1)]), size=8)
    assert len(list(images)) == len(list(images)) == len(images.unreadable) == 1


def test_data_of_which_nothing_can_be_read_is_an_error():
    with pytest.raises(DataError, match="None of the 2 images of list can be read"):
        list(evaluation_images(ListedImages([b"", b"x"]), size=8))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"size": 0}, "size is 0"),
        ({"size": 8, "limit": 0}, "Limit is 0"),
        ({"size": 8, "crops": 0}, "Crops of each image are 0"),
    ],
)
def test_arguments_out_of_range_are_refused_at_once(options, text):
    with pytest.raises(ConfigError, match=text):
        evaluation_images(ListedImages([encoded(1)]), **options)


def test_one_crop_is_the_central_square_and_further_ones_come_after_it():
    source = ListedImages([encoded(n, width=60, height=40) for n in range(2)])
    centres = list(evaluation_images(source, size=16))
    items = list(evaluation_images(source, size=16, crops=3))
    assert [key for key, _ in items] == ["0.png"] * 3 + ["1.png"] * 3
    for (_, centre), (_, first) in zip(centres, items[::3], strict=True):
        assert torch.equal(centre, first)
    assert len({image.numpy().tobytes() for _, image in items}) == 6


def test_crops_are_the_same_in_every_evaluation_whatever_the_limit():
    source = ListedImages([encoded(n, width=60, height=40) for n in range(3)])
    first, second = (list(evaluation_images(source, size=16, crops=4, limit=limit)) for limit in (None, 2))
    for (_, a), (_, b) in zip(first, second, strict=False):
        assert torch.equal(a, b)


def ramp(width, height):
    """A PNG whose red says the column and whose green says the row."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(width), np.arange(height)[:, None]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_crops_lie_anywhere_in_the_image_at_sides_from_that_of_the_evaluation_to_the_short_one():
    images = [image for _, image in evaluation_images(ListedImages([ramp(200, 100)]), size=25, crops=300)][1:]
    red, green = (torch.stack([image[channel] for image in images]) * 127.5 + 127.5 for channel in (0, 1))
    sides = (green.amax(dim=(1, 2)) - green.amin(dim=(1, 2))) * 25 / 24  # between the centres of pixels
    assert sides.min() == pytest.approx(25, abs=1.5)
    assert sides.max() == pytest.approx(100, abs=2)
    assert sides.log().mean() == pytest.approx(np.log(50), abs=0.1)  # uniform in the logarithm
    assert red.amin() < 5 and red.amax() > 195
    assert green.amin() < 5 and green.amax() > 95
    mirrored = red[:, 0, 0] > red[:, 0, -1]
    assert 0.4 < mirrored.float().mean() < 0.6


def test_an_image_below_the_evaluation_size_is_cut_at_its_short_side():
    images = [image for _, image in evaluation_images(ListedImages([ramp(30, 20)]), size=40, crops=20)]
    for image in images:
        green = image[1] * 127.5 + 127.5
        assert green.amin() < 1 and green.amax() > 18
