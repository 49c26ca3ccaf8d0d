import pytest
import torch

from stepladder.errors import ConfigError, ImageError
from stepladder.layouts import GridLayout, TokenLayout, check_side

GRID = GridLayout(channels=16, stride=8)
TOKENS = TokenLayout(tokens=6, channels=4, side=32)


@pytest.mark.parametrize(("size", "shape"), [((1, 1), (16, 1, 1)), ((8, 16), (16, 1, 2)), ((37, 401), (16, 5, 51))])
def test_a_grid_has_a_vector_for_each_patch_and_covers_the_image(size, shape):
    assert GRID.shape(size) == shape
    covered = GRID.covers(torch.zeros(2, *shape))
    assert all(side <= cover < side + 8 for side, cover in zip(size, covered, strict=True))
    images = torch.rand(2, 3, *size)
    fitted = GRID.fit(images)
    assert tuple(fitted.shape[2:]) == covered
    assert torch.equal(fitted[..., : size[0], : size[1]], images)


def test_a_grid_takes_every_size():
    for size in ((1, 1), (37, 401)):
        GRID.check_size(size)
    check_side(GRID, 37, "photo")


def test_a_grid_grows_by_its_last_row_and_column_until_the_ladder_fits():
    latent = torch.arange(6.0).view(1, 1, 2, 3).expand(2, 16, 2, 3)
    fitted = GRID.fit_latent(latent, 32)
    assert fitted.shape == (2, 16, 4, 4)
    assert torch.equal(fitted[..., :2, :3], latent)
    assert torch.equal(fitted[..., :2, 3:], latent[..., -1:])
    assert torch.equal(fitted[..., 2:, :3], latent[..., -1:, :].expand(2, 16, 2, 3))
    for multiple in (4, 8):
        assert GRID.fit_latent(latent, multiple) is latent
    assert GRID.fit_latent(fitted, 32) is fitted
    assert GridLayout(channels=16, stride=12).fit_latent(latent, 32).shape == (2, 16, 8, 8)  # 96 x 96 pixels


def test_tokens_have_one_shape_and_cover_one_size():
    assert TOKENS.shape((32, 32)) == (6, 4)
    assert TOKENS.covers(torch.zeros(2, 6, 4)) == (32, 32)
    images, latent = torch.rand(2, 3, 32, 32), torch.zeros(2, 6, 4)
    assert TOKENS.fit(images) is images
    assert TOKENS.fit_latent(latent, 16) is latent


@pytest.mark.parametrize("size", [(31, 32), (32, 64), (1, 1), (256, 256)])
def test_images_of_another_size_than_the_tokens_describe_are_refused(size):
    height, width = size
    text = (
        f"Image size {width} x {height} does not fit a model with 6 latent tokens for 32 x 32. "
        "Crop and resize it first: stepladder.images.centre_crop_resize, or --size 32."
    )
    for call in (lambda: TOKENS.check_size(size), lambda: TOKENS.fit(torch.zeros(1, 3, *size))):
        with pytest.raises(ImageError) as error:
            call()
        assert str(error.value) == text


def test_a_side_that_is_asked_for_is_refused_with_the_name_of_the_model():
    check_side(TOKENS, 32, "small")
    with pytest.raises(ConfigError) as error:
        check_side(TOKENS, 256, "small")
    assert str(error.value) == "Image side 256 does not fit small. It takes 32 x 32 only. Pass --size 32."


@pytest.mark.parametrize("layout", [GRID, TOKENS])
def test_latents_have_the_shape_of_the_layout(layout):
    layout.check(torch.zeros(2, *layout.shape((32, 32))))
    assert layout.side_multiple == (8 if layout is GRID else 32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_latents_may_be_other_floats(dtype):
    TOKENS.check(torch.zeros(1, 6, 4, dtype=dtype))


@pytest.mark.untyped
@pytest.mark.parametrize("layout", [GRID, TOKENS])
@pytest.mark.parametrize(
    "bad",
    [
        torch.zeros(6, 4),
        torch.zeros(2, 5, 4),
        torch.zeros(2, 6, 5),
        torch.zeros(2, 4, 6, 4),
        torch.zeros(16, 4, 4),
        torch.zeros(2, 6, 4, dtype=torch.int64),
        torch.zeros(2, 16, 4, 4, dtype=torch.int64),
    ],
    ids=lambda bad: f"{tuple(bad.shape)}-{bad.dtype}",
)
def test_what_is_no_batch_of_latents_is_refused(layout, bad):
    accepted = {GRID: r"\(B, 16, h, w\)", TOKENS: r"\(B, 6, 4\)"}[layout]
    with pytest.raises(
        ValueError, match=rf"^Latent has shape .*Accepted: floats of shape {accepted}\. Encode with the"
    ):
        layout.check(bad)


def test_a_layout_says_what_it_is():
    assert (str(GRID), str(TOKENS)) == ("f8c16", "6 tokens of 4")
