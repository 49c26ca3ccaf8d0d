import itertools
import logging
import pickle
from collections import Counter

import pytest
import torch

from image_fakes import ListedImages, encoded
from stepladder.data import CropConfig, TrainingCrops, training_loader
from stepladder.errors import ConfigError, DataError

CROP = CropConfig(size=8, max_scale=2.0)
SOURCE = ListedImages([encoded(n) for n in range(12)])


def batches(count, source=SOURCE, **options):
    loader = training_loader(source, **{"crop": CROP, "batch_size": 4, "seed": 0, **options})
    try:
        return list(itertools.islice(loader, count))
    finally:
        loader.close()


def drawn(images):
    """Which images the crops are from, told by the red channel."""
    return ((images[:, 0].mean(dim=(1, 2)) + 1) * 127.5).round().int().tolist()


def test_batches_have_their_shape_and_range():
    (images,) = batches(1)
    assert images.shape == (4, 3, 8, 8)
    assert images.dtype == torch.float32
    assert -1 <= images.min() < images.max() <= 1


def test_an_epoch_draws_every_image_once_and_the_next_in_another_order():
    first, second = (drawn(torch.cat(batches(3, start_batch=start))) for start in (0, 3))
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second


def test_an_epoch_that_ends_inside_a_batch_drops_and_repeats_nothing():
    images = drawn(torch.cat(batches(24, batch_size=5)))
    assert set(Counter(images).values()) == {10}
    assert sorted(images[12:24]) == list(range(12))


def test_a_batch_may_be_larger_than_the_data():
    (images,) = batches(1, batch_size=30)
    assert set(Counter(drawn(images[:24])).values()) == {2}


def test_two_processes_with_two_workers_cover_an_epoch_without_overlap():
    parts = [
        drawn(torch.cat(batches(3, batch_size=2, process_index=p, num_processes=2, num_workers=2))) for p in range(2)
    ]
    assert not set(parts[0]) & set(parts[1])
    assert sorted(parts[0] + parts[1]) == list(range(12))


def test_workers_do_not_change_the_batches():
    for alone, workers in zip(batches(4), batches(4, num_workers=2), strict=True):
        assert torch.equal(alone, workers)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batch_n_is_the_same_when_resumed_from_n(num_workers):
    resumed = batches(2, start_batch=5, num_workers=num_workers)
    for whole, part in zip(batches(7)[5:], resumed, strict=True):
        assert torch.equal(whole, part)


def test_another_seed_gives_another_order_and_other_crops():
    first, second = batches(1, seed=0)[0], batches(1, seed=1)[0]
    assert drawn(first) != drawn(second)


def test_an_image_is_cut_anew_in_every_epoch():
    source = ListedImages([encoded(0)])
    first, second = batches(2, source, batch_size=1)
    assert not torch.equal(first, second)


def test_the_global_random_states_are_left_alone():
    before = torch.get_rng_state()
    batches(1)
    batches(1, num_workers=1)
    assert torch.equal(before, torch.get_rng_state())


def test_several_crops_come_from_one_image():
    (images,) = batches(1, crop=CropConfig(size=8, crops_per_image=2))
    first, second, third, fourth = drawn(images)
    assert first == second != third == fourth
    assert not torch.equal(images[0], images[1])


def test_the_data_set_can_be_pickled_after_use():
    crops = TrainingCrops(SOURCE, crop=CROP, batch_size=4, seed=0)
    assert torch.equal(pickle.loads(pickle.dumps(crops))[7].images, crops[7].images)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_corrupt_images_are_replaced_and_counted_in_one_warning(caplog, num_workers):
    images = [encoded(n) for n in range(12)]
    images[3], images[7], images[8] = b"", images[7][:60], b"not an image"
    with caplog.at_level(logging.WARNING, "stepladder"):
        drawn_images = drawn(torch.cat(batches(9, ListedImages(images), num_workers=num_workers)))
    assert set(drawn_images) == set(range(12)) - {3, 7, 8}
    assert len(drawn_images) == 36
    (record,) = caplog.records
    assert "3 unreadable images of 12 skipped. The first is" in record.getMessage()


def test_an_unreadable_image_is_counted_although_the_epoch_is_not_over(caplog):
    with caplog.at_level(logging.WARNING, "stepladder"):
        batches(1, ListedImages([b"", *(encoded(n) for n in range(9))]), batch_size=9)
    (record,) = caplog.records
    assert "1 unreadable image of 10 skipped. The first is 0.png: " in record.getMessage()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_data_of_which_nothing_can_be_read_is_an_error_of_one_line(num_workers):
    with pytest.raises(DataError, match=r"None of the 3 images of list can be read") as caught:
        batches(1, ListedImages([b"", b"x", b"y"]), num_workers=num_workers)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"batch_size": 0}, "Batch size 0"),
        ({"crop": CropConfig(crops_per_image=3)}, "Batch size 4 does not hold whole images of 3 crops"),
        ({"seed": -1}, "Seed is -1"),
        ({"process_index": 2, "num_processes": 2}, "Process index 2 of 2 processes"),
        ({"num_workers": -1}, "given -1 workers"),
        ({"start_batch": -1}, "first batch -1"),
    ],
)
def test_arguments_out_of_range_are_refused_at_once(options, text):
    with pytest.raises(ConfigError, match=text):
        training_loader(SOURCE, **{"crop": CROP, "batch_size": 4, "seed": 0, **options})
