import math

import pytest
import torch

from stepladder.errors import ConfigError
from stepladder.measure.metrics import FeatureStatistics, frechet_distance, frechet_interval
from stepladder.measure.metrics.bootstrap import _distance

GENERATOR = torch.Generator()


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=GENERATOR.manual_seed(seed), dtype=torch.float64)


def statistics(features):
    result = FeatureStatistics()
    result.update(features)
    return result


@pytest.mark.parametrize(("count", "dimensions"), [(40, 6), (9, 20)])
def test_a_drawn_distance_is_the_frechet_distance_of_what_was_drawn(count, dimensions):
    a, b = normal(count, dimensions), 1.3 * normal(count, dimensions, seed=1) + 0.2
    weights = torch.randint(3, (count,), generator=GENERATOR.manual_seed(2))
    repeated = [features.repeat_interleave(weights, dim=0) for features in (a, b)]
    expected = frechet_distance(*map(statistics, repeated))
    assert _distance(a, b, weights.double()) == pytest.approx(expected, rel=1e-6)


def test_the_interval_has_the_width_that_theory_says():
    """For x and y normal, one far from the other, FD is (mx - my)^2 but for small terms, whose deviation is 2 |mx - my|
    times that of mx - my, (2/n)^(1/2)."""
    n, shift = 400, 5.0
    low, high = frechet_interval(25.0, normal(n, 1), normal(n, 1, seed=1) + shift, torch.arange(n), resamples=400)
    wanted = 1.96 * 2 * shift * math.sqrt(2 / n)
    assert (high - low) / 2 == pytest.approx(wanted, rel=0.12)
    assert (high + low) / 2 == pytest.approx(25)


def test_reconstructions_are_drawn_with_their_originals():
    """y = x + shift for every image: the distance is shift^2 whatever is drawn."""
    x = normal(100, 3)
    low, high = frechet_interval(12.0, x, x + 2, torch.arange(100), resamples=50)
    assert high - low < 1e-6


def test_crops_of_a_photograph_are_drawn_together():
    """Ten equal crops of each photograph say no more than one."""
    x, y = normal(100, 1), normal(100, 1, seed=1) + 5
    groups = torch.arange(100)
    alone = frechet_interval(25.0, x, y, groups, resamples=300)
    tenfold = [each.repeat_interleave(10, dim=0) for each in (x, y, groups)]
    together = frechet_interval(25.0, *tenfold, resamples=300)
    as_if_others = frechet_interval(25.0, *tenfold[:2], torch.arange(1000), resamples=300)
    assert together[1] - together[0] == pytest.approx(alone[1] - alone[0], rel=0.02)
    assert as_if_others[1] - as_if_others[0] == pytest.approx((alone[1] - alone[0]) / math.sqrt(10), rel=0.15)


def test_the_same_seed_draws_the_same_photographs_and_another_others():
    x, y, groups = normal(20, 2), normal(20, 2, seed=1), torch.arange(20) + 7
    first, second, other = (frechet_interval(1.0, x, y, groups, resamples=5, seed=seed) for seed in (0, 0, 1))
    assert first == second != other


def test_an_interval_never_goes_below_0():
    low, high = frechet_interval(0.0, normal(5, 2), normal(5, 2, seed=1), torch.arange(5), resamples=5)
    assert low == 0 < high


@pytest.mark.parametrize(("groups", "resamples"), [([0, 0, 0], 5), ([0, 1, 2], 1)])
def test_one_photograph_or_one_resample_is_refused(groups, resamples):
    with pytest.raises(ConfigError, match=r"bootstrap interval of \d photographs, drawn \d times\. At least 2 of both"):
        frechet_interval(1.0, normal(3, 2), normal(3, 2), torch.tensor(groups), resamples=resamples)
