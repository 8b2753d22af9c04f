import math

import numpy as np
import pytest
from scipy import stats

from toolkit.analysis.stats import intervals, mean_interval, normal, wilson


@pytest.mark.parametrize("k, n", [(0, 10), (3, 10), (10, 10), (1, 1), (57, 200), (199_999, 200_000)])
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
def test_wilson_equals_scipy(k: int, n: int, confidence: float) -> None:
    reference = stats.binomtest(k, n).proportion_ci(confidence, method="wilson")
    low, high = wilson(k / n, n, confidence)
    assert (low, high) == (pytest.approx(reference.low, abs=1e-12), pytest.approx(reference.high, abs=1e-12))
    assert 0 <= low <= k / n <= high <= 1


def test_wilson_covers_the_truth_as_often_as_it_says() -> None:
    random, p, n = np.random.default_rng(0), 0.12, 150
    low, high = wilson(random.binomial(n, p, 20_000) / n, n)
    assert 0.93 <= np.mean((low <= p) & (p <= high)) <= 0.97


def test_normal_equals_scipy() -> None:
    assert normal(2.0, 0.25, 0.9) == pytest.approx(stats.norm.interval(0.9, 2.0, 0.25))


def test_mean_interval_equals_scipy() -> None:
    values = [0.41, 0.45, 0.39, 0.44]
    mean, low, high = mean_interval(values)
    reference = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (low, high) == pytest.approx(reference) and mean == pytest.approx(0.4225)
    assert math.isnan(mean_interval([0.4])[1])


def test_the_interval_fits_the_metric() -> None:
    found = intervals("acc", [0.5, 0.123, 0.5, math.nan], [0.05, 0.05, math.nan, math.nan], [100, 100, math.nan, 100])
    assert found.method.tolist() == ["wilson", "normal", "", ""]
    assert found.low[1] == pytest.approx(0.123 - 1.959964 * 0.05, abs=1e-6) and math.isnan(found.high[2])
    assert intervals("f1", [0.5], [0.05], [100]).method.tolist() == ["normal"]
    assert intervals("exact_match,flexible-extract", [0.5], [0.05], [100]).method.tolist() == ["wilson"]


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_a_confidence_in_percent_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        wilson(0.5, 10, confidence)
