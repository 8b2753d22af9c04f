import math

import numpy as np
import pytest
from scipy import stats

from toolkit.analysis.stats import (
    LESS_IS_BETTER,
    bootstrap_interval,
    holm,
    intervals,
    mean_interval,
    normal,
    smallest_difference,
    wilson,
)


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


def test_normal_and_student_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """Means of 100 scores between 0 and 1, and means of 4 seeds."""
    random = np.random.default_rng(6)
    items = random.beta(2, 3, (4000, 100))
    low, high = normal(items.mean(1), stats.sem(items, axis=1))
    assert 0.93 <= np.mean((low <= 0.4) & (0.4 <= high)) <= 0.97
    bounds = np.array([mean_interval(runs)[1:] for runs in random.normal(0.4, 0.02, (2000, 4))])
    assert 0.93 <= np.mean((bounds[:, 0] <= 0.4) & (0.4 <= bounds[:, 1])) <= 0.97


def test_the_interval_fits_the_metric() -> None:
    found = intervals("acc", [0.5, 0.123, 0.5, math.nan], [0.05, 0.05, math.nan, math.nan], [100, 100, math.nan, 100])
    assert found.method.tolist() == ["wilson", "normal", "", ""]
    assert found.low[1] == pytest.approx(0.123 - 1.959964 * 0.05, abs=1e-6) and math.isnan(found.high[2])
    assert intervals("f1", [0.5], [0.05], [100]).method.tolist() == ["normal"]
    for name in ("exact_match,flexible-extract", "exact_match/flexible-extract"):
        assert intervals(name, [0.5], [0.05], [100]).method.tolist() == ["wilson"]


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_a_confidence_in_percent_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        wilson(0.5, 10, confidence)


def test_bootstrap_covers_the_truth_as_often_as_it_says() -> None:
    """The mean of 80 skewed scores between 0 and 1, as ROUGE-L gives them."""
    random, hits = np.random.default_rng(1), 0
    for seed in range(500):
        low, high = bootstrap_interval(random.beta(0.5, 2, 80), resamples=999, seed=seed)
        hits += low <= 0.2 <= high
    assert 0.93 <= hits / 500 <= 0.97


@pytest.mark.parametrize("shape", [(0.5, 2), (5, 0.4), (2, 2)])
def test_bootstrap_equals_scipy(shape: tuple[float, float]) -> None:
    items = np.random.default_rng(2).beta(*shape, 60)
    rng = np.random.default_rng(3)
    reference = stats.bootstrap(
        (items,), np.mean, n_resamples=40_000, method="BCa", rng=rng, batch=1000
    ).confidence_interval
    assert bootstrap_interval(items, resamples=40_000) == pytest.approx((reference.low, reference.high), abs=8e-4)


def test_bootstrap_is_near_the_normal_interval_of_many_items_and_repeats() -> None:
    items = np.random.default_rng(0).beta(2, 3, 4000)
    low, high = bootstrap_interval(items)
    assert (low, high) == pytest.approx(normal(items.mean(), stats.sem(items)), abs=5e-4)
    assert (low, high) == bootstrap_interval(items) != bootstrap_interval(items, seed=1)
    assert bootstrap_interval([0.5, 0.5, 0.5]) == (0.5, 0.5)


@pytest.mark.parametrize("items, said", [([0.5], "1 values"), ([0.5, math.nan], "1 of 2 values are missing")])
def test_a_bootstrap_needs_numbers(items: list[float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        bootstrap_interval(items)


def test_holm_equals_statsmodels() -> None:
    # statsmodels 0.15.0: multipletests(p, method="holm")[1]
    assert holm([0.01, 0.04, 0.03, 0.005, 0.2, 0.5]) == pytest.approx([0.05, 0.12, 0.12, 0.03, 0.4, 0.5])
    found = holm([0.02, math.nan, 0.01])
    assert found[[0, 2]] == pytest.approx([0.02, 0.02]) and math.isnan(found[1])
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([0.1, 1.2])


def test_the_smallest_difference_equals_statsmodels_and_is_found_as_often() -> None:
    # statsmodels 0.15.0: NormalIndPower(ddof=0).solve_power(nobs1=80, alpha=0.05, power=0.8, ratio=0) * 0.5
    assert smallest_difference(80) == pytest.approx(0.15661317981077472, abs=1e-6)  # it counts the other tail
    random, d, n = np.random.default_rng(3), smallest_difference(400, 0.3), 400
    apart = random.normal(d, 0.3, (4000, n))
    found = np.abs(apart.mean(1) / (apart.std(1, ddof=1) / np.sqrt(n))) > 1.96
    assert 0.78 <= found.mean() <= 0.82
    with pytest.raises(ValueError, match="power between 0 and 1"):
        smallest_difference(80, power=80)


def test_where_less_is_better_as_lm_eval_says() -> None:
    import lm_eval.api.metrics  # noqa: F401
    from lm_eval.api.registry import higher_is_better_registry

    assert {name for name, more in higher_is_better_registry.items() if not more} == set(LESS_IS_BETTER)
