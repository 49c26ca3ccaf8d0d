import pytest
import torch

from stepladder.encoders import MMDiTEncoder, MMDiTEncoderConfig, build_encoder, latent_layout
from stepladder.errors import ConfigError
from stepladder.layouts import TokenLayout
from stepladder.sampling.randomness import generator, normal


def config(**changes) -> MMDiTEncoderConfig:
    return MMDiTEncoderConfig(
        **{"image_side": 32, "patch": 8, "tokens": 6, "width": 16, "depth": 2, "heads": 2} | changes
    )


def images(count: int = 2, side: int = 32) -> torch.Tensor:
    return normal((count, 3, side, side), generator(0))


@pytest.mark.parametrize("tokens", [1, 6, 7, 40])
@pytest.mark.parametrize("patch", [4, 8, 32])
def test_an_image_becomes_the_tokens_that_are_asked_for(tokens, patch):
    encoder = build_encoder(config(tokens=tokens, patch=patch), 4)
    assert isinstance(encoder, MMDiTEncoder)
    assert encoder(images()).shape == (2, tokens, 4)
    assert latent_layout(encoder.config, 4) == TokenLayout(tokens, 4, 32)


def test_tokens_differ_and_depend_on_the_whole_image():
    encoder = MMDiTEncoder(config(), 4)
    x = images(1)
    base = encoder(x)[0]
    assert (base[:, None] - base).norm(dim=-1).add(torch.eye(6)).min() > 1e-3
    for corner in (slice(None, 8), slice(24, None)):
        changed = x.clone()
        changed[..., corner, corner] += 1
        assert (encoder(changed)[0] - base).norm(dim=-1).min() > 1e-4


def test_patches_know_where_they_are():
    encoder = MMDiTEncoder(config(latent_positions="none"), 4)
    x = images(1)
    assert not torch.allclose(encoder(x), encoder(x.roll(8, dims=-1)), atol=1e-4)


@pytest.mark.parametrize(("kind", "differs"), [("1d", True), ("cross", True), ("grid", True), ("none", False)])
def test_equal_registers_differ_by_their_positions_only(kind, differs):
    encoder = MMDiTEncoder(config(latent_positions=kind), 4)
    torch.nn.init.ones_(encoder.registers)
    found = encoder(images(1))[0]
    assert torch.allclose(found, found[:1].expand_as(found), atol=1e-5) != differs


def test_a_linear_part_codes_the_cell_of_each_token():
    encoder = MMDiTEncoder(config(tokens=8, linear=True), 4)  # 2 x 4 cells of 16 x 8
    assert encoder.linear.kernel_size == (16, 8)
    x = images(1)
    fresh = encoder(x)
    for token in range(8):
        row, column = divmod(token, 4)
        changed = torch.zeros_like(x)
        cell = (..., slice(16 * row, 16 * row + 16), slice(8 * column, 8 * column + 8))
        changed[cell] = x[cell]
        torch.testing.assert_close(encoder(changed)[:, token], fresh[:, token])  # the transformer is silent still
    torch.nn.init.ones_(encoder.out.weight)
    assert (encoder(x) - fresh).abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"tokens": 0}, r"^Encoder tokens 0 is outside 1 to 16,384\. Usual values: 32 to 256\.$"),
        ({"image_side": 36}, r"^Encoder image_side 36 is not a multiple of its patch 8\. Pass one\.$"),
        ({"image_side": 0}, r"^Encoder image_side 0 is outside 1 to 8,192\."),
        ({"width": 18}, r"^Encoder width 18 is not a multiple of 4 times its 2 heads\."),
        ({"patch": 6}, r"^Encoder patch 6 is not a power of two\."),
        ({"tokens": 6, "linear": True}, r"^An image of 32 x 32 cannot be cut into 2 x 3 equal cells, one for each"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, text):
    with pytest.raises(ConfigError, match=text):
        config(**changes)
