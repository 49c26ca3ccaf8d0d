import itertools
import math

import pytest
import torch
from torch.overrides import TorchFunctionMode

from stepladder.nn.rotary import grid_angles, rotate, token_angles, turns
from stepladder.sampling.randomness import generator, normal

KINDS = ["none", "1d", "cross", "grid"]
PAIRS = 8


def vectors(*shape: int) -> torch.Tensor:
    return normal(shape, generator(0))


def turned_alike(angles: torch.Tensor) -> torch.Tensor:
    """Products of one query with one key, for all pairs of places: (n, n)."""
    query, key = vectors(2, 1, 1, 1, 2 * angles.shape[1]).expand(-1, -1, -1, len(angles), -1)
    return (rotate(query, turns(angles)) @ rotate(key, turns(angles)).mT)[0, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_rotation_keeps_the_norm(kind):
    x = vectors(2, 3, 12, 2 * PAIRS)
    angles = token_angles(kind, 12, PAIRS)
    found = rotate(x, turns(angles))
    torch.testing.assert_close(found.norm(dim=-1), x.norm(dim=-1))
    pairs = [value.unflatten(-1, (2, PAIRS)).norm(dim=-2) for value in (x, found)]
    torch.testing.assert_close(*pairs)
    back = rotate(found, turns(-angles))
    torch.testing.assert_close(back, x)
    assert torch.equal(found, x) == (kind == "none")


def test_a_rotation_is_that_of_complex_numbers():
    x, angles = vectors(1, 1, 12, 2 * PAIRS), grid_angles(3, 4, PAIRS)
    a, b = x.chunk(2, dim=-1)
    expected = torch.complex(a, b) * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(rotate(x, turns(angles)), torch.cat([expected.real, expected.imag], dim=-1))


def test_products_on_a_line_depend_on_the_distance_only():
    products = turned_alike(token_angles("1d", 9, PAIRS))
    for offset in range(-8, 9):
        diagonal = products.diagonal(offset)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4, rtol=0)
    assert products[0].std() > 0.1


def test_products_on_a_grid_depend_on_the_difference_of_rows_and_columns_only():
    rows, columns = 4, 5
    products = turned_alike(grid_angles(rows, columns, PAIRS))
    places = list(itertools.product(range(rows), range(columns)))
    seen: dict[tuple[int, int], float] = {}
    for (i, (y, x)), (j, (v, u)) in itertools.product(enumerate(places), repeat=2):
        expected = seen.setdefault((v - y, u - x), products[i, j].item())
        assert products[i, j].item() == pytest.approx(expected, abs=1e-4)
    assert len({round(value, 3) for value in seen.values()}) == (2 * rows - 1) * (2 * columns - 1)


def test_a_common_vector_looks_at_its_own_place_most():
    # What the biases of queries and keys start as: attention is local at first.
    ones = torch.ones(1, 1, 64, 64)
    angles = grid_angles(8, 8, 32)
    products = (rotate(ones, turns(angles)) @ rotate(ones, turns(angles)).mT)[0, 0]
    assert torch.equal(products.argmax(dim=1), torch.arange(64))
    beside, far = products[0, 1], products[0, 32:]
    assert products[0, 0] > beside > far.max()


@pytest.mark.parametrize("side", [2, 3, 4, 8, 16, 32])
def test_the_corners_of_all_scales_have_the_same_coordinates(side):
    # An encoder and all stages of a decoder see the same image, in 2 x 2 to 32 x 32 patches.
    corners = grid_angles(side, side, PAIRS).view(side, side, -1)[:: side - 1, :: side - 1]
    torch.testing.assert_close(corners, grid_angles(2, 2, PAIRS).view(2, 2, -1))


def test_coordinates_run_from_minus_one_to_one_and_rows_and_columns_have_half_of_the_pairs_each():
    angles = grid_angles(3, 5, PAIRS).view(3, 5, PAIRS)
    coordinates = angles / angles[-1, -1]  # the last corner is at (1, 1)
    for i, y in enumerate((-1, 0, 1)):
        for j, x in enumerate((-1, -0.5, 0, 0.5, 1)):
            expected = torch.tensor([y] * (PAIRS // 2) + [x] * (PAIRS // 2), dtype=torch.float32)
            torch.testing.assert_close(coordinates[i, j], expected)


def test_a_single_place_is_in_the_middle():
    assert not grid_angles(1, 1, PAIRS).any()
    assert not token_angles("1d", 1, PAIRS).any()
    between = grid_angles(3, 3, PAIRS)[4]
    assert torch.equal(grid_angles(1, 1, PAIRS)[0], between)


def test_pairs_turn_an_eighth_of_a_turn_to_eight_turns_on_the_way_across():
    first, last = token_angles("1d", 7, PAIRS)[[0, -1]]
    turns = (last - first) / (2 * math.pi)
    assert turns[0].item() == pytest.approx(1 / 8)
    assert turns[-1].item() == pytest.approx(8)
    torch.testing.assert_close(turns[1:] / turns[:-1], torch.full((PAIRS - 1,), 64 ** (1 / (PAIRS - 1))))


def test_latent_tokens_may_be_nowhere():
    assert not token_angles("none", 5, PAIRS).any()


def test_latent_tokens_may_be_on_a_row_below_the_image():
    count, half = 5, PAIRS // 2
    found = token_angles("cross", count, PAIRS)
    last_row = grid_angles(4, count, PAIRS)[-count:]
    torch.testing.assert_close(found[:, half:], last_row[:, half:])  # the columns of the image
    torch.testing.assert_close(found[:, :half], 1.25 * last_row[:, :half])  # where no patch is


@pytest.mark.parametrize(("count", "grid"), [(1, (1, 1)), (6, (2, 3)), (7, (1, 7)), (32, (4, 8)), (64, (8, 8))])
def test_latent_tokens_may_be_spread_over_the_image(count, grid):
    assert torch.equal(token_angles("grid", count, PAIRS), grid_angles(*grid, PAIRS))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2, 7, 128])
def test_every_number_of_tokens_has_places(kind, count):
    angles = token_angles(kind, count, PAIRS)
    assert angles.shape == (count, PAIRS)
    assert angles.isfinite().all()
    if kind != "none" and count > 1:
        assert len(angles.unique(dim=0)) == count


class Seen(TorchFunctionMode):
    """Notes the dtypes of all results."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_function__(self, operation, types, arguments=(), options=None):
        out = operation(*arguments, **(options or {}))
        if isinstance(out, torch.Tensor):
            self.dtypes.add(out.dtype)
        return out


def test_angles_are_float32_also_under_autocast_and_nothing_is_complex():
    x = vectors(1, 1, 12, 2 * PAIRS)
    with torch.autocast("cpu", torch.bfloat16), Seen() as seen:
        for angles in (grid_angles(3, 4, PAIRS), *(token_angles(kind, 12, PAIRS) for kind in KINDS)):
            assert angles.dtype == torch.float32
            assert rotate(x, turns(angles)).dtype == torch.float32
            assert rotate(x.bfloat16(), turns(angles)).dtype == torch.bfloat16
    assert not any(dtype.is_complex for dtype in seen.dtypes)


def test_a_rotation_in_bfloat16_is_close_to_that_in_float32():
    x, angles = vectors(1, 1, 64, 2 * PAIRS), grid_angles(8, 8, PAIRS)
    torch.testing.assert_close(rotate(x.bfloat16(), turns(angles)).float(), rotate(x, turns(angles)), atol=0.05, rtol=0)
