"""The adversarial game: values of the hinge loss, who learns from what, and the balance."""

import pytest
import torch

from stepladder.losses import DiscriminatorHeads, balanced_gradient, discriminator_loss, student_loss
from stepladder.sampling.randomness import generator

CHANNELS = (4, 6)


@pytest.fixture
def features() -> list[torch.Tensor]:
    return [torch.randn(2, count, 8 // (i + 1), 8, generator=generator(i)) for i, count in enumerate(CHANNELS)]


def scores(*values: float) -> list[torch.Tensor]:
    return [torch.full((2, 1, 4, 4), float(value)) for value in values]


def test_each_layer_has_a_map_of_scores(features):
    found = DiscriminatorHeads(CHANNELS, width=8)(features)
    assert [tuple(layer.shape) for layer in found] == [(2, 1, 8, 8), (2, 1, 4, 8)]


def test_scores_do_not_depend_on_the_size_of_features(features):
    heads = DiscriminatorHeads(CHANNELS, width=8)
    for one, other in zip(heads(features), heads([10 * layer for layer in features]), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("real", "fake", "loss"),
    [((0, 0), (0, 0), 2), ((1, 1), (-1, -1), 0), ((2, 5), (-3, -2), 0), ((-1, 0), (0, 0), 2.5), ((1, 1), (1, 0), 1.5)],
)
def test_the_hinge_loss_is_zero_where_the_heads_are_sure(real, fake, loss):
    assert discriminator_loss(scores(*real), scores(*fake)).item() == pytest.approx(loss)


def test_the_student_wants_high_scores():
    assert student_loss(scores(1, 3)).item() == pytest.approx(-2)


@pytest.mark.parametrize("share", [0.0, 0.5, 2.0])
def test_the_adversarial_gradient_has_a_fixed_share(share):
    others, adversarial = (torch.randn(2, 3, 8, 8, generator=generator(seed)) for seed in (0, 1))
    for scale in (1e-6, 1.0, 1e6):
        added = balanced_gradient(others, scale * adversarial, share) - others
        assert added.norm().item() == pytest.approx(share * others.norm().item(), rel=1e-3, abs=1e-5)


def test_a_silent_discriminator_leaves_the_other_gradient_alone():
    others = torch.ones(1, 3, 4, 4)
    assert torch.equal(balanced_gradient(others, torch.zeros_like(others), 0.5), others)
