import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from stepladder.errors import ConfigError
from stepladder.measure.metrics import FeatureStatistics, frechet_distance


def features(seed, count=200, dimensions=6, shift=0.0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, dimensions)) @ rng.normal(size=(dimensions, dimensions)) + shift


def statistics(*batches):
    result = FeatureStatistics()
    for batch in batches:
        result.update(torch.as_tensor(batch))
    return result


class OnAnAccelerator(torch.Tensor):
    """Has no double precision there, as on mps."""

    def cpu(self):
        return self.as_subclass(torch.Tensor)

    def double(self):
        raise TypeError("Cannot convert to float64: the device has none.")


def test_features_get_double_precision_on_the_host_alone():
    data = torch.rand(7, 3, generator=torch.Generator().manual_seed(0))
    found = FeatureStatistics()
    found.update(data.as_subclass(OnAnAccelerator))
    assert torch.equal(found.covariance, statistics(data).covariance)


def test_mean_and_covariance_do_not_depend_on_the_batches():
    data = features(0) + 1000
    whole, parts = statistics(data), statistics(data[:1], data[1:1], data[1:120], data[120:])
    assert parts.count == 200
    np.testing.assert_allclose(parts.mean, data.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(parts.covariance, np.cov(data, rowvar=False), rtol=1e-9)
    np.testing.assert_allclose(whole.covariance, parts.covariance, rtol=1e-9)


def test_the_accumulation_is_float64():
    data = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) + 1e4
    result = statistics(data)
    assert result.covariance.dtype == torch.float64
    np.testing.assert_allclose(result.covariance, np.cov(data.double().numpy(), rowvar=False), rtol=1e-10)


def test_diagonal_gaussians_have_their_closed_form():
    signs = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]]).double() * math.sqrt(3 / 4)  # unit covariance
    first = statistics(signs * torch.tensor([2.0, 3.0]))
    second = statistics(signs * torch.tensor([5.0, 1.0]) + torch.tensor([1.0, -2.0]))
    assert frechet_distance(first, second) == pytest.approx((1 + 4) + (2 - 5) ** 2 + (3 - 1) ** 2, rel=1e-12)


def test_any_gaussians_agree_with_the_matrix_root_of_scipy():
    a, b = features(1), features(2, shift=0.3)
    c1, c2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(c1 + c2 - 2 * sqrtm(c1 @ c2).real)
    assert frechet_distance(statistics(a), statistics(b)) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(statistics(b), statistics(a)) == pytest.approx(expected, rel=1e-9)


def test_equal_sets_are_at_distance_0():
    data = features(3)
    assert 0 <= frechet_distance(statistics(data), statistics(data)) < 1e-9


@pytest.mark.parametrize("count", [2, 5, 19])
def test_fewer_images_than_features_give_a_finite_distance(count):
    a, b = features(4, count=count, dimensions=20), features(5, count=count, dimensions=20)
    distance = frechet_distance(statistics(a), statistics(b))
    # tr (C1 C2)^(1/2) is the sum of the singular values of A B' / (n - 1), A and B centred.
    a0, b0 = a - a.mean(0), b - b.mean(0)
    overlap = np.linalg.svd(a0 @ b0.T, compute_uv=False).sum() / (count - 1)
    traces = (np.square(a0).sum() + np.square(b0).sum()) / (count - 1)
    assert distance == pytest.approx(np.square(a.mean(0) - b.mean(0)).sum() + traces - 2 * overlap, rel=1e-6)
    assert 0 <= frechet_distance(statistics(a), statistics(a)) < 1e-4


def test_a_set_of_equal_images_has_no_spread():
    a, b = np.ones((4, 6)), np.zeros((3, 6))
    assert frechet_distance(statistics(a), statistics(b)) == pytest.approx(6)
    assert frechet_distance(statistics(a), statistics(features(0))) > 0


def test_features_that_come_later_count_also_after_a_distance():
    a, b, other = features(1), features(2), features(3)
    growing = statistics(a)
    before = frechet_distance(growing, statistics(other))
    growing.update(torch.as_tensor(b))
    after = frechet_distance(growing, statistics(other))
    assert after != before
    assert after == pytest.approx(frechet_distance(statistics(a, b), statistics(other)), rel=1e-12)


def test_one_image_has_no_covariance():
    with pytest.raises(ConfigError, match=r"A covariance of 1 images\. At least 2 are needed"):
        frechet_distance(statistics(features(0, count=1)), statistics(features(0)))


def test_features_of_two_networks_are_refused():
    with pytest.raises(ConfigError, match="features of 6 and of 5 dimensions"):
        frechet_distance(statistics(features(0)), statistics(features(0, dimensions=5)))
    with pytest.raises(ConfigError, match=r"Features of shape \(200, 5\) after features of 6 dimensions"):
        statistics(features(0), features(0, dimensions=5))
