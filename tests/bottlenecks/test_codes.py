"""Rows of vectors, gradients past a rounding, and statistics of codes."""

import pytest
import torch

from stepladder.bottlenecks.codes import code_statistics, from_rows, straight_through, to_rows


@pytest.mark.parametrize(("shape", "rows"), [((2, 3, 4, 5), (2, 4, 5, 3)), ((2, 4, 3), (2, 4, 3))])
def test_rows_hold_the_channels_last_and_go_back(shape, rows):
    latent = torch.randn(shape)
    assert to_rows(latent).shape == rows
    assert torch.equal(from_rows(to_rows(latent)), latent)


def test_straight_through_has_the_value_of_one_and_the_gradient_of_the_other():
    value, smooth = torch.tensor([1 / 3, 1e-8, 1e8]), torch.tensor([7.1, 1e6, -3e-5]).requires_grad_()
    out = straight_through(value, smooth)
    assert torch.equal(out, value)
    (out * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert smooth.grad.tolist() == [1, 2, 3]


def test_perplexity_is_the_number_of_codes_that_are_used_alike():
    even = code_statistics(torch.tensor([[0, 1], [2, 3]]), 8)
    assert even["codebook_usage"] == 0.5
    torch.testing.assert_close(even["codebook_perplexity"], torch.tensor(4.0))
    single = code_statistics(torch.full((3, 5), 7), 10)
    torch.testing.assert_close(single["codebook_usage"], torch.tensor(0.1))
    torch.testing.assert_close(single["codebook_perplexity"], torch.tensor(1.0))
    uneven = code_statistics(torch.tensor([[5, 5, 5, 6]]), 10)
    torch.testing.assert_close(uneven["codebook_perplexity"], torch.tensor(0.25**-0.25 * 0.75**-0.75))
