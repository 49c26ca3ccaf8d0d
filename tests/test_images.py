"""Tensors, pictures and folders; reading is in `test_images_reading`, writing in `test_images_writing`."""

import numpy as np
import pytest
import torch
from PIL import Image

from stepladder import images
from stepladder.errors import ImageError
from stepladder.images import (
    centre_crop_resize,
    crop_to,
    from_uint8,
    grid,
    image_files,
    pad_to_multiple,
    side_by_side,
    to_pil,
    to_tensor,
    to_uint8,
)


def pixels(image):
    assert image.mode == "RGB"
    return np.asarray(image).tolist()


# ------------------------------------------------------------------------------------------------------------- folders


def test_a_folder_gives_its_images_sorted(tmp_path):
    for name in ("b.PNG", "a.jpeg", ".hidden.png", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "c.png").mkdir()
    assert [path.name for path in image_files(tmp_path)] == ["a.jpeg", "b.PNG"]


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(ImageError, match=r"holds no images \(\.avif .*\)\. Name a folder with images in it\."):
        image_files(tmp_path)
    with pytest.raises(ImageError, match="No such file or directory"):
        image_files(tmp_path / "no")


# ------------------------------------------------------------------------------------------------------------- tensors


def test_every_byte_survives_the_round_trip():
    every = torch.arange(256, dtype=torch.uint8).repeat(3, 1).reshape(3, 16, 16)
    image = Image.fromarray(every.permute(1, 2, 0).numpy())
    tensor = to_tensor(image)
    assert tensor.dtype == torch.float32
    assert (tensor.min(), tensor.max()) == (-1, 1)
    assert torch.equal(to_uint8(tensor), every)
    assert pixels(to_pil(tensor)) == pixels(image)


def test_bytes_are_clamped_and_ties_round_to_even():
    assert to_uint8(torch.tensor([-5.0, 5.0])).tolist() == [0, 255]
    assert to_uint8(torch.tensor([0.0])).tolist() == [128]  # 127.5, the only tie that binary fractions reach


def test_half_precision_is_rounded_in_single():
    assert to_uint8(torch.tensor([0.999], dtype=torch.bfloat16)).tolist() == [255]


def test_bytes_become_the_same_tensor_in_batches_that_keep_their_layout():
    values = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    image = Image.fromarray(values)
    batch = from_uint8(torch.stack([images.pixels(image)] * 2).permute(0, 3, 1, 2))
    assert torch.equal(batch[1], to_tensor(image))
    assert batch.is_contiguous(memory_format=torch.channels_last)


def test_a_tensor_takes_only_rgb():
    with pytest.raises(ImageError, match="Image mode L is not RGB"):
        to_tensor(Image.new("L", (2, 2)))


@pytest.mark.parametrize("size", [(1, 1), (37, 41), (64, 32)])
def test_padding_repeats_the_edge_and_cropping_undoes_it(size):
    images = torch.rand(2, 3, *size)
    padded = pad_to_multiple(images, 32)
    assert all(side % 32 == 0 for side in padded.shape[-2:])
    assert torch.equal(padded[..., -1, -1], images[..., -1, -1])
    assert torch.equal(crop_to(padded, size), images)
    assert padded.shape[-2] - size[0] < 32


# ------------------------------------------------------------------------------------------------------------ pictures


def test_the_protocol_takes_the_centre_of_the_short_side():
    image = Image.new("RGB", (30, 10), "red")
    image.paste((0, 0, 255), (10, 0, 20, 10))
    for size in (10, 5, 40):
        square = centre_crop_resize(image, size)
        assert square.size == (size, size)
        assert set(map(tuple, np.asarray(square).reshape(-1, 3).tolist())) == {(0, 0, 255)}


def test_the_protocol_is_antialiased():
    stripes = Image.fromarray(np.tile(np.array([0, 255], dtype=np.uint8), (64, 32))).convert("RGB")
    assert np.abs(np.asarray(centre_crop_resize(stripes, 8)).astype(int) - 128).max() < 20


def test_pictures_side_by_side_have_a_white_gap():
    sheet = side_by_side([Image.new("RGB", (3, 2), "red"), Image.new("RGB", (3, 2), "blue")], gap=1)
    assert sheet.size == (7, 2)
    assert pixels(sheet)[0][2:5] == [[255, 0, 0], [255, 255, 255], [0, 0, 255]]


def test_a_grid_fills_rows_and_fits_the_largest():
    sheet = grid([Image.new("RGB", (2, 2)), Image.new("RGB", (4, 3)), Image.new("RGB", (1, 1))], columns=2, gap=2)
    assert sheet.size == (10, 8)
    assert pixels(sheet)[5][0] == [0, 0, 0]
