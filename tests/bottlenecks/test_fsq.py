"""Finite scalar quantisation: a bijection of codes, evenly used levels, a gradient past the rounding."""

import itertools
import math

import pytest
import torch

from stepladder.bottlenecks import FSQBottleneck, FSQConfig
from stepladder.configs import structure, unstructure
from stepladder.errors import ConfigError
from stepladder.sampling.randomness import generator

LEVELS = [[5, 4, 3], [8, 6, 5], [2, 2, 2, 2], [2], [7], [8, 5, 5, 5]]


def built(levels: list[int]) -> FSQBottleneck:
    return FSQBottleneck(FSQConfig(levels=levels), len(levels)).eval()


def features_of(latent: torch.Tensor, levels: list[int]) -> torch.Tensor:
    """Features that lie on the levels, all but the first and last of each channel exactly."""
    tops = torch.tensor([level - 1.0 for level in levels])
    bounded = latent * (tops * (tops + 2) / 12).sqrt() * 2 / tops
    return bounded.clamp(-0.999, 0.999).atanh()


@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_all_codes_go_to_latents_and_back(levels):
    bottleneck = built(levels)
    assert bottleneck.codebook_size == math.prod(levels)
    indices = torch.arange(bottleneck.codebook_size)[None]  # (1, N): tokens
    latent = bottleneck.from_indices(indices)
    assert latent.shape == (1, bottleneck.codebook_size, len(levels))
    assert len({tuple(code) for code in latent[0].tolist()}) == bottleneck.codebook_size
    out = bottleneck(features_of(latent, levels))
    assert torch.equal(out.indices, indices)
    assert torch.equal(out.latent, latent)


@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_codes_are_all_combinations_of_levels_the_first_channel_counting_fastest(levels):
    values = [
        [(k - (level - 1) / 2) / math.sqrt((level**2 - 1) / 12) for k in range(level)] for level in reversed(levels)
    ]
    wanted = torch.tensor([list(reversed(code)) for code in itertools.product(*values)])
    found = built(levels).from_indices(torch.arange(math.prod(levels))[None])[0]
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_latents_have_unit_scale_where_all_codes_are_used_alike(levels):
    latent = built(levels).from_indices(torch.arange(math.prod(levels))[None])[0]
    torch.testing.assert_close(latent.mean(0), torch.zeros(len(levels)), atol=1e-5, rtol=0)
    torch.testing.assert_close(latent.square().mean(0), torch.ones(len(levels)))


def test_gaussian_features_use_the_levels_nearly_alike():
    levels = [2, 3, 4, 5, 8, 16]
    latent = built(levels)(torch.randn(1, 200_000, 6, generator=generator(0))).latent[0]
    assert 0.93 < latent.std(0).min() < latent.std(0).max() < 1.03
    for channel, count in enumerate(levels):
        _, used = latent[:, channel].unique(return_counts=True)
        assert len(used) == count
        assert used.min() > 0.5 * used.max()


def test_features_of_any_scale_come_to_use_the_levels_alike():
    bottleneck = FSQBottleneck(FSQConfig(levels=[5, 5]), 2)
    x = torch.randn(4, 500, 2, generator=generator(0)) * torch.tensor([0.01, 100]) + torch.tensor([0.3, -500])
    assert bottleneck(x).latent.std(dim=(0, 1)).min() > 0.9


@pytest.mark.parametrize("levels", [[5], [4]], ids=["odd", "even"])
def test_levels_are_those_nearest_to_the_bounded_feature(levels):
    y = torch.linspace(-3, 3, 1001)[None, :, None]
    index = built(levels)(y).indices
    bounded = (levels[0] - 1) / 2 * (y[..., 0].tanh() + 1)
    assert (index - bounded).abs().max() <= 0.5 + 1e-5
    assert (index.diff() >= 0).all()
    assert index.unique().tolist() == list(range(levels[0]))


def test_the_gradient_is_that_of_the_bound_without_the_rounding():
    y = torch.randn(1, 50, 2, generator=generator(0), requires_grad=True)
    bottleneck = built([5, 8])
    bottleneck(y).latent.sum().backward()
    slope = torch.tensor([2 / math.sqrt(2), 3.5 / math.sqrt(63 / 12)])
    wanted = slope * (1 - (y.detach() / math.sqrt(1 + 1e-6)).tanh().square()) / math.sqrt(1 + 1e-6)
    torch.testing.assert_close(y.grad, wanted)


def test_training_moves_the_scale_of_features_but_never_what_an_index_means():
    bottleneck, indices = FSQBottleneck(FSQConfig(levels=[8, 5]), 2), torch.arange(40)[None]
    before = bottleneck.from_indices(indices)
    out = bottleneck(torch.randn(2, 30, 2, generator=generator(0)) * 5 + 1)
    assert torch.equal(bottleneck.from_indices(indices), before)
    assert torch.equal(bottleneck.from_indices(out.indices), out.latent)


def test_extreme_features_are_codes():
    y = torch.tensor([-1e30, -50.0, 0.0, 50.0, 1e30])[None, :, None]
    assert built([6])(y).indices.tolist() == [[0, 0, 2, 5, 5]]  # 2.5 rounds to the even one


def test_large_codebooks_keep_their_indices_exact():
    levels = [2] * 30
    bottleneck = built(levels)
    indices = torch.tensor([[0, 1, 2**24 + 1, 2**29 + 1, 2**30 - 1]])
    latent = bottleneck.from_indices(indices)
    assert torch.equal(bottleneck(latent).indices, indices)


def test_nothing_but_the_scale_is_stored():
    assert set(built([8, 5]).state_dict()) == {"scale.mean", "scale.variance", "scale.batches"}


def test_a_bottleneck_that_was_built_without_memory_works_once_its_weights_are_assigned():
    with torch.device("meta"):
        bottleneck = FSQBottleneck(FSQConfig(levels=[8, 5]), 2).eval()
    bottleneck.load_state_dict(built([8, 5]).state_dict(), strict=True, assign=True)
    x = torch.randn(2, 3, 2, generator=generator(0))
    assert torch.equal(bottleneck(x).indices, built([8, 5])(x).indices)


@pytest.mark.untyped
def test_encoding_compiles_to_one_graph():
    bottleneck = built([8, 5])
    x = torch.randn(2, 3, 2, generator=generator(0))
    compiled = torch.compile(lambda x: bottleneck(x).indices, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), bottleneck(x).indices)


def test_a_config_goes_to_plain_data_and_back():
    config = FSQConfig(levels=[8, 5, 5, 5])
    data = {"kind": "fsq", "levels": [8, 5, 5, 5]}
    assert unstructure(config) == data
    assert structure(data, FSQConfig, where="here") == config


@pytest.mark.parametrize(
    ("levels", "text"),
    [
        ([], r"FSQ levels are empty\. Accepted: one number for each channel"),
        ([8, 1], r"FSQ levels \[8, 1\] hold 1\. Accepted: 2 to 65536 for each channel"),
        ([70000], r"FSQ levels \[70000\] hold 70000\. Accepted: 2 to 65536"),
        ([2] * 31, r"make 2147483648 codes\. Accepted: up to 2147483647\. Use fewer channels or levels"),
    ],
)
def test_odd_levels_are_refused(levels, text):
    with pytest.raises(ConfigError, match=text):
        FSQConfig(levels=levels)


def test_levels_that_do_not_fit_the_latent_are_refused():
    with pytest.raises(ConfigError, match=r"FSQ levels \[8, 5\] are 2 for a latent of 3 channels\. Accepted: one"):
        FSQBottleneck(FSQConfig(levels=[8, 5]), 3)
