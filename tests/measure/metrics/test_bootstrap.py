import math

import pytest
import torch

from stepladder.errors import ConfigError
from stepladder.measure.metrics import (
    FeatureStatistics,
    difference_interval,
    frechet_distance,
    frechet_interval,
    frechet_resamples,
)
from stepladder.measure.metrics.bootstrap import _distance

GENERATOR = torch.Generator()


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=GENERATOR.manual_seed(seed), dtype=torch.float64)


def statistics(features):
    result = FeatureStatistics()
    result.update(features)
    return result


def interval(distance, x, y, groups, **options):
    return frechet_interval(distance, frechet_resamples(x, y, groups, **options))


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
    low, high = interval(25.0, normal(n, 1), normal(n, 1, seed=1) + shift, torch.arange(n), resamples=400)
    wanted = 1.96 * 2 * shift * math.sqrt(2 / n)
    assert (high - low) / 2 == pytest.approx(wanted, rel=0.12)
    assert (high + low) / 2 == pytest.approx(25)


def test_the_interval_of_a_difference_has_the_width_that_theory_says():
    """For y and y + d it is (m - d)^2 - m^2 with m = mx - my, but for small terms. Its deviation is 2 |d| times that of
    m, where each distance alone has 2 |m| times as much."""
    n, shift, d = 400, 5.0, 0.5
    x, y = normal(n, 1), normal(n, 1, seed=1) + shift
    drawn = [frechet_resamples(x, each, torch.arange(n), resamples=400) for each in (y, y + d)]
    wanted = (shift + d) ** 2 - shift**2
    low, high = difference_interval(wanted, drawn[1], drawn[0])
    assert (high - low) / 2 == pytest.approx(1.96 * 2 * d * math.sqrt(2 / n), rel=0.12)
    assert (high + low) / 2 == pytest.approx(wanted)


def test_a_model_beside_itself_makes_no_difference():
    drawn = frechet_resamples(normal(9, 2), normal(9, 2, seed=1), torch.arange(9), resamples=5)
    assert difference_interval(0.0, drawn, drawn) == (0, 0)


def test_reconstructions_are_drawn_with_their_originals():
    """y = x + shift for every image: the distance is shift^2 whatever is drawn."""
    x = normal(100, 3)
    low, high = interval(12.0, x, x + 2, torch.arange(100), resamples=50)
    assert high - low < 1e-6


def test_crops_of_a_photograph_are_drawn_together():
    """Ten equal crops of each photograph say no more than one."""
    x, y = normal(100, 1), normal(100, 1, seed=1) + 5
    groups = torch.arange(100)
    alone = interval(25.0, x, y, groups, resamples=300)
    tenfold = [each.repeat_interleave(10, dim=0) for each in (x, y, groups)]
    together = interval(25.0, *tenfold, resamples=300)
    as_if_others = interval(25.0, *tenfold[:2], torch.arange(1000), resamples=300)
    assert together[1] - together[0] == pytest.approx(alone[1] - alone[0], rel=0.02)
    assert as_if_others[1] - as_if_others[0] == pytest.approx((alone[1] - alone[0]) / math.sqrt(10), rel=0.15)


def test_the_same_seed_draws_the_same_photographs_and_another_others():
    x, y, groups = normal(20, 2), normal(20, 2, seed=1), torch.arange(20) + 7
    first, second, other = (interval(1.0, x, y, groups, resamples=5, seed=seed) for seed in (0, 0, 1))
    assert first == second != other


def test_an_interval_never_goes_below_0():
    low, high = interval(0.0, normal(5, 2), normal(5, 2, seed=1), torch.arange(5), resamples=5)
    assert low == 0 < high


@pytest.mark.parametrize(("groups", "resamples"), [([0, 0, 0], 5), ([0, 1, 2], 1)])
def test_one_photograph_or_one_resample_is_refused(groups, resamples):
    with pytest.raises(ConfigError, match=r"bootstrap interval of \d photographs, drawn \d times\. At least 2 of both"):
        frechet_resamples(normal(3, 2), normal(3, 2), torch.tensor(groups), resamples=resamples)
