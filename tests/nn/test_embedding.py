"""The embedding of noise and scale."""

import pytest
import torch

from stepladder.nn.embedding import ScalarEmbedding


@pytest.mark.parametrize("width", [2, 4, 16, 256])
def test_an_embedding_has_its_width_and_unit_pairs(width):
    found = ScalarEmbedding(width)(torch.linspace(0, 1, 5))
    assert found.shape == (5, width)
    assert found.dtype == torch.float32
    sine, cosine = found.chunk(2, dim=1)
    torch.testing.assert_close(sine.square() + cosine.square(), torch.ones(5, width // 2))


def test_frequencies_run_from_half_a_turn_to_the_most_turns():
    embedding = ScalarEmbedding(8, max_turns=4.0)
    turns = [0.5, 1.0, 2.0, 4.0]
    x = torch.tensor([0.1])
    wanted = torch.tensor([[*(f(2 * torch.pi * n * 0.1) for f in (_sin, _cos) for n in turns)]])
    torch.testing.assert_close(embedding(x), wanted, atol=1e-5, rtol=1e-4)


def _sin(angle: float) -> float:
    return torch.tensor(angle).sin().item()


def _cos(angle: float) -> float:
    return torch.tensor(angle).cos().item()


def test_neighbouring_noise_levels_and_the_two_ends_are_told_apart():
    levels = torch.linspace(0, 1, 101)
    found = ScalarEmbedding(256)(levels)
    distances = torch.cdist(found, found) + 100 * torch.eye(101)
    assert distances.min() > 0.5
    assert distances[0, 100] > 0.5


def test_numbers_in_half_precision_are_embedded_in_float32():
    found = ScalarEmbedding(16)(torch.tensor([0.5], dtype=torch.bfloat16))
    assert found.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert ScalarEmbedding(16)(torch.tensor([0.3])).dtype == torch.float32
