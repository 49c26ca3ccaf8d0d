"""What holds for all bottlenecks, latents of unit scale, and the divergence of the variational bottleneck."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from stepladder.bottlenecks import (
    FSQConfig,
    GaussianPosterior,
    KLBottleneck,
    KLConfig,
    LatentScale,
    PlainBottleneck,
    PlainConfig,
    VQConfig,
    build_bottleneck,
    channel_dim,
)
from stepladder.errors import ConfigError

ALL = [PlainConfig(), KLConfig(weight=0.1), FSQConfig(levels=[8, 5, 5, 2]), VQConfig(codebook_size=16)]
QUANTISED = ALL[2:]


def features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tokens(grid: torch.Tensor) -> torch.Tensor:
    """(B, c, h, w) as (B, h w, c)."""
    return grid.flatten(2).transpose(1, 2)


@pytest.fixture(params=ALL, ids=lambda config: config.kind)
def config(request):
    return request.param


@pytest.mark.parametrize("training", [True, False])
def test_a_grid_and_its_places_as_tokens_have_the_same_latents(config, training):
    of_grids, of_tokens = (build_bottleneck(config, 4) for _ in range(2))
    of_tokens.load_state_dict(of_grids.state_dict())
    for bottleneck in (of_grids, of_tokens):
        bottleneck.train(training)
    for step in range(2):
        grid = features(3, of_grids.in_channels, 5, 2, seed=step) * 2 + 1
        one, other = of_grids(grid, draw()), of_tokens(tokens(grid), draw())
        assert one.latent.shape == (3, 4, 5, 2)
        assert other.latent.shape == (3, 10, 4)
        torch.testing.assert_close(one.loss, other.loss)
        if config.kind == "kl" and training:
            continue  # it draws noise in the order of the values
        torch.testing.assert_close(tokens(one.latent), other.latent)
        for name, value in of_grids.state_dict().items():
            torch.testing.assert_close(of_tokens.state_dict()[name], value, msg=name)


def test_features_get_a_gradient_through_every_bottleneck(config):
    bottleneck = build_bottleneck(config, 4)
    x = features(2, 6, bottleneck.in_channels).requires_grad_()
    out = bottleneck(x, draw())
    (out.latent.square().sum() + out.loss).backward()
    assert x.grad.isfinite().all()
    assert (x.grad != 0).any(dim=(0, 1)).all()


def test_latents_of_half_precision_features_are_close_to_those_of_single_ones(config):
    bottleneck = build_bottleneck(config, 4).eval()
    x = features(2, 6, bottleneck.in_channels).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        half = bottleneck(x)
    assert half.latent.dtype == torch.float32
    torch.testing.assert_close(half.latent, bottleneck(x.float()).latent)


def test_encoding_without_gradients_leaves_every_bottleneck_as_it_is(config):
    bottleneck = build_bottleneck(config, 4).train()
    before = {name: value.clone() for name, value in bottleneck.state_dict().items()}
    with torch.no_grad():
        bottleneck(features(2, 6, bottleneck.in_channels), draw())
    assert all(torch.equal(value, before[name]) for name, value in bottleneck.state_dict().items())


@pytest.mark.parametrize("config", QUANTISED, ids=lambda config: config.kind)
@pytest.mark.parametrize("shape", [(2, 4, 3, 5), (2, 7, 4)], ids=["grid", "tokens"])
def test_indices_give_exactly_the_latent_beside_them(config, shape):
    bottleneck = build_bottleneck(config, 4)
    bottleneck(features(*shape, seed=1) * 2 + 1, draw())
    out = bottleneck.eval()(features(*shape))
    assert out.indices.dtype == torch.int64
    assert out.indices.shape == ((2, 3, 5) if len(shape) == 4 else (2, 7))
    assert 0 <= out.indices.min() <= out.indices.max() < bottleneck.codebook_size
    assert torch.equal(bottleneck.from_indices(out.indices), out.latent)


@pytest.mark.parametrize("config", QUANTISED, ids=lambda config: config.kind)
def test_quantised_latents_do_not_change_when_encoded_again_from_the_same_features(config):
    bottleneck = build_bottleneck(config, 4).eval()
    x = features(4, 9, 4)
    whole = bottleneck(x).indices
    assert torch.equal(whole, torch.cat([bottleneck(part[None]).indices for part in x]))


@pytest.mark.parametrize("config", QUANTISED, ids=lambda config: config.kind)
def test_training_reports_how_well_the_codebook_is_used(config):
    bottleneck = build_bottleneck(config, 4)
    out = bottleneck(features(4, 9, 4), draw())
    assert set(out.statistics) == {"codebook_usage", "codebook_perplexity"}
    assert all(value.shape == () and value.dtype == torch.float32 for value in out.statistics.values())
    different = len(set(out.indices.flatten().tolist()))
    assert out.statistics["codebook_usage"].item() == pytest.approx(different / bottleneck.codebook_size)
    assert 1 < out.statistics["codebook_perplexity"] <= different + 1e-4
    assert bottleneck.eval()(features(4, 9, 4)).statistics == {}


def test_what_is_neither_grid_nor_tokens_is_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 4\)\. Accepted: \(B, c, h, w\) or \(B, N, D\)\. Reshape"):
        channel_dim(torch.zeros(2, 4))


def test_the_scale_warms_up_like_the_mean_over_all_batches():
    scale = LatentScale(3)
    batches = [features(4, 3, 5, 5, seed=n) * (n + 1) + n for n in range(6)]
    for batch in batches:
        scale(batch)
    everything = torch.cat(batches)
    torch.testing.assert_close(scale.mean, everything.mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scale.variance, everything.var(dim=(0, 2, 3), unbiased=False), rtol=1e-4, atol=1e-5)
    scale.eval()
    white = scale(everything)
    torch.testing.assert_close(white.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(white.std(dim=(0, 2, 3)), torch.ones(3), atol=1e-2, rtol=0)


def test_after_its_warm_up_the_scale_follows_with_its_momentum():
    scale = LatentScale(1, decay=0.9)
    for _ in range(60):
        scale(torch.full((1, 1, 2, 2), 10.0))
    torch.testing.assert_close(scale.mean, torch.tensor([10.0]))
    scale(torch.full((1, 1, 2, 2), 20.0))
    torch.testing.assert_close(scale.mean, torch.tensor([11.0]))


def test_in_evaluation_the_scale_does_not_move():
    scale = LatentScale(2).eval()
    x = features(2, 2, 3, 3) + 5
    torch.testing.assert_close(scale(x), x, atol=1e-4, rtol=1e-5)
    assert scale.batches == 0


def test_training_and_evaluation_normalise_by_the_same_values():
    scale = LatentScale(2)
    x = features(2, 2, 3, 3) + 5
    trained = scale(x)
    assert torch.equal(trained, scale.eval()(x))


def test_no_gradient_flows_through_the_running_values():
    scale, x = LatentScale(2), features(2, 2, 3, 3).requires_grad_()
    scale(x).sum().backward()
    wanted = (scale.variance + 1e-6).rsqrt().view(1, 2, 1, 1).expand_as(x)
    torch.testing.assert_close(x.grad, wanted)


def test_the_plain_bottleneck_normalises_and_nothing_else():
    bottleneck = PlainBottleneck(PlainConfig(), 4).eval()
    x = features(2, 4, 3, 3)
    out = bottleneck(x)
    assert bottleneck.in_channels == 4
    torch.testing.assert_close(out.latent, x, atol=1e-5, rtol=1e-5)
    assert out.loss == 0
    assert out.posterior is out.indices is None


def test_the_divergence_is_that_of_torch():
    posterior = GaussianPosterior(mean=features(2, 3, 4, 4), log_variance=features(2, 3, 4, 4, seed=1))
    wanted = kl_divergence(Normal(posterior.mean, (0.5 * posterior.log_variance).exp()), Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(posterior.divergence(), wanted)


def test_samples_of_the_posterior_have_its_mean_and_variance():
    posterior = GaussianPosterior(
        mean=torch.full((1, 1, 300, 300), 2.0), log_variance=torch.full((1, 1, 300, 300), -2.0)
    )
    draw = posterior.sample(torch.Generator().manual_seed(0))
    assert draw.mean().item() == pytest.approx(2, abs=0.01)
    assert draw.std().item() == pytest.approx(torch.tensor(-1.0).exp().item(), rel=0.02)


def test_the_variational_bottleneck_samples_in_training_and_takes_the_mean_afterwards():
    bottleneck = KLBottleneck(KLConfig(weight=0.5), 3)
    x = features(2, 6, 4, 4)
    assert bottleneck.in_channels == 6
    draws = [bottleneck(x, torch.Generator().manual_seed(seed)).latent for seed in (0, 1)]
    assert not torch.allclose(draws[0], draws[1])
    with pytest.raises(ValueError, match=r"in training mode draws noise\. Pass a generator"):
        bottleneck(x)
    bottleneck.eval()
    out = bottleneck(x)
    assert torch.equal(out.latent, bottleneck.scale(x[:, :3]))
    torch.testing.assert_close(out.loss, 0.5 * out.posterior.divergence())


def test_extreme_variances_stay_finite():
    bottleneck = KLBottleneck(KLConfig(), 1)
    x = torch.tensor([0.0, 1e6]).view(1, 2, 1, 1).requires_grad_()
    out = bottleneck(x, torch.Generator().manual_seed(0))
    assert torch.isfinite(out.loss)
    assert torch.isfinite(out.latent).all()


def test_a_negative_weight_is_refused():
    with pytest.raises(ConfigError, match=r"KL weight -1 is outside 0 to 1,000,000\. Usual values: 1e-6 to 1e-3"):
        KLConfig(weight=-1)


def test_encoding_without_gradients_never_moves_the_scale():
    scale = LatentScale(2).train()
    with torch.no_grad():
        scale(features(4, 2, 5, 5) * 3 + 1)
    assert torch.equal(scale.mean, torch.zeros(2))
    assert scale.batches == 0
