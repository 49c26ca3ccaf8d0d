"""Gradients are off in a decode, and as they were for its caller."""

import inspect

import pytest
import torch

from stepladder import Tokenizer, presets


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(presets.tiny()).eval()


def _grads(images):
    """Whether each image of a decode has gradients, and what its caller has turned on when it comes."""
    return [(image.requires_grad, torch.is_grad_enabled()) for image in images]


@pytest.mark.parametrize("on", [True, False])
def test_a_decode_stage_by_stage_leaves_the_gradients_of_its_caller_alone(tokenizer, on):
    latent = torch.zeros(1, 16, 4, 4)
    with torch.set_grad_enabled(on):
        assert _grads(tokenizer.decode_progressively(latent)) == [(False, on)] * tokenizer.schedule.num_stages
        one, two = (tokenizer.decode_progressively(latent) for _ in range(2))
        assert _grads(map(next, (one, two, one))) == [(False, on)] * 3
        with torch.set_grad_enabled(not on):  # changed between two stages, and left while a decode waits
            assert _grads([next(two)]) == [(False, not on)]
            one.close()
            assert torch.is_grad_enabled() is not on
        del two
        assert torch.is_grad_enabled() is on


def test_a_decode_has_no_gradients_where_a_wrapper_hides_that_it_is_a_generator(tokenizer):
    """As jaxtyping's does, below any decorator that would turn them off."""
    bare = inspect.unwrap(Tokenizer.decode_progressively)
    assert inspect.isgeneratorfunction(bare)
    assert not any(image.requires_grad for image in bare(tokenizer, torch.zeros(1, 16, 4, 4)))
