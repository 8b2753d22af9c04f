import math
from typing import Literal

import numpy as np
import pytest
from scipy import stats

from toolkit.analysis.trends import change_point, rank_correlation, slope

TOKENS = 10 ** np.linspace(9, 12, 24)


def test_slope_equals_scipy() -> None:
    score = 0.1 * np.log10(TOKENS) + np.random.default_rng(0).normal(0, 0.02, 24)
    fit = stats.linregress(np.log10(TOKENS), score)
    half = stats.t.ppf(0.975, 22) * fit.stderr
    found = slope(TOKENS[::-1], score[::-1])
    assert (found.slope, found.low, found.high) == pytest.approx((fit.slope, fit.slope - half, fit.slope + half))
    assert (found.intercept, found.p, found.n) == (pytest.approx(fit.intercept), pytest.approx(fit.pvalue), 24)


def test_slope_of_eight_checkpoints_covers_the_truth() -> None:
    random, tokens = np.random.default_rng(1), 10 ** np.linspace(9, 12, 8)
    found = [slope(tokens, 0.05 * np.log10(tokens) + random.normal(0, 0.02, 8)) for _ in range(1000)]
    assert 0.93 <= np.mean([f.low <= 0.05 <= f.high for f in found]) <= 0.97


def test_a_break_is_found_where_it_is() -> None:
    x = np.log10(TOKENS)
    score = 0.2 + 0.01 * x + 0.2 * np.maximum(0, x - 10.5)
    found = change_point(TOKENS, score + np.random.default_rng(0).normal(0, 0.01, 24))
    assert math.log10(found.tokens) == pytest.approx(10.5, abs=0.1) and found.low < 10**10.5 < found.high
    assert (found.before, found.after) == (pytest.approx(0.01, abs=0.02), pytest.approx(0.21, abs=0.03))
    assert found.p == 0.001 and found.n == 24


@pytest.mark.parametrize("points", [8, 24])
def test_the_interval_of_a_break_covers_the_truth(points: int) -> None:
    random, x, hits = np.random.default_rng(2), np.linspace(9, 12, points), 0
    for _ in range(1000):
        score = 0.01 * x + 0.2 * np.maximum(0, x - 10.5) + random.normal(0, 0.02, points)
        found = change_point(10**x, score, permutations=1)
        hits += found.low <= 10**10.5 <= found.high
    assert 0.93 <= hits / 1000 <= 0.97


def test_a_straight_line_has_no_break() -> None:
    random, x, wrong = np.random.default_rng(3), np.linspace(9, 12, 12), 0
    for seed in range(300):
        wrong += change_point(10**x, 0.1 * x + random.normal(0, 0.02, 12), permutations=99, seed=seed).p <= 0.05
    assert 0.02 <= wrong / 300 <= 0.08
    assert change_point(TOKENS, 0.1 * np.log10(TOKENS)).p == 1.0


@pytest.mark.parametrize("method", ["spearman", "kendall"])
def test_rank_correlation_equals_scipy(method: Literal["spearman", "kendall"]) -> None:
    random = np.random.default_rng(4)
    x = random.integers(0, 6, 15).astype(float)  # with ties
    y = x + random.integers(-3, 4, 15)
    found = rank_correlation(x, y, method)
    reference = stats.spearmanr(x, y) if method == "spearman" else stats.kendalltau(x, y)
    assert (found.value, found.p) == (pytest.approx(reference.statistic), pytest.approx(reference.pvalue))
    assert found.low < found.value < found.high <= 1
    rows = np.random.default_rng(0).integers(0, 15, (2000, 15))
    one = stats.spearmanr if method == "spearman" else stats.kendalltau
    drawn = [one(x[r], y[r]).statistic for r in rows[:200]]
    again = rank_correlation(x, y, method, resamples=200)
    rows = np.random.default_rng(0).integers(0, 15, (200, 15))
    drawn = [one(x[r], y[r]).statistic for r in rows]
    assert (again.low, again.high) == pytest.approx(tuple(np.nanquantile(drawn, [0.025, 0.975])))


@pytest.mark.parametrize("method", ["spearman", "kendall"])
def test_the_p_value_of_few_pairs_is_exact(method: Literal["spearman", "kendall"]) -> None:
    x, y = np.array([1.0, 2, 3, 4, 5, 6, 7]), np.array([2.0, 1, 4, 3, 7, 7, 5])
    one = stats.spearmanr if method == "spearman" else stats.kendalltau
    reference = stats.permutation_test(
        (x,), lambda x: one(x, y).statistic, permutation_type="pairings", n_resamples=9**9
    )
    assert rank_correlation(x, y, method).p == pytest.approx(reference.pvalue)
    assert rank_correlation(x, x, method).p == pytest.approx(2 / 5040)


@pytest.mark.parametrize(
    "method, truth", [("spearman", 6 / math.pi * math.asin(0.3)), ("kendall", 2 / math.pi * math.asin(0.6))]
)
def test_rank_correlation_covers_the_truth(method: Literal["spearman", "kendall"], truth: float) -> None:
    """Of bivariate normal numbers with correlation 0.6, whose rank correlations are known."""
    random, hits = np.random.default_rng(5), 0
    for seed in range(400):
        x, noise = random.normal(size=(2, 24))
        found = rank_correlation(x, 0.6 * x + 0.8 * noise, method, resamples=599, seed=seed)
        hits += found.low <= truth <= found.high
    assert 0.93 <= hits / 400 <= 0.97


def test_what_has_no_trend_is_refused() -> None:
    with pytest.raises(ValueError, match="tokens 0 has no logarithm"):
        slope([0, 1e9, 1e10], [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="2 values, and at least 3"):
        slope([1e9, 1e10], [0.1, 0.2])
    with pytest.raises(ValueError, match="at least 5 different"):
        change_point([1e9, 1e9, 1e10, 1e10, 1e11, 1e12], range(6))
    with pytest.raises(ValueError, match="values that differ"):
        rank_correlation([1, 1, 1, 1], [1, 2, 3, 4])
