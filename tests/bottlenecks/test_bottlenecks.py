"""Latents of unit scale, and the divergence of the variational bottleneck."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from stepladder.bottlenecks import GaussianPosterior, KLBottleneck, KLConfig, LatentScale, PlainBottleneck, PlainConfig
from stepladder.errors import ConfigError


def features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


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
    with pytest.raises(ConfigError, match=r"KL weight -1 is negative\. Accepted: 0 or more"):
        KLConfig(weight=-1)


def test_encoding_without_gradients_never_moves_the_scale():
    scale = LatentScale(2).train()
    with torch.no_grad():
        scale(features(4, 2, 5, 5) * 3 + 1)
    assert torch.equal(scale.mean, torch.zeros(2))
    assert scale.batches == 0
