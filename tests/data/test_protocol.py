import logging

import numpy as np
import pytest
import torch

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


@pytest.mark.parametrize(("options", "text"), [({"size": 0}, "size is 0"), ({"size": 8, "limit": 0}, "Limit is 0")])
def test_arguments_out_of_range_are_refused_at_once(options, text):
    with pytest.raises(ConfigError, match=text):
        evaluation_images(ListedImages([encoded(1)]), **options)
