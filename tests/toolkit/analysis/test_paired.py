import numpy as np
import pytest
from scipy import stats

from toolkit.analysis.paired import bootstrap_p, compare, discordant_interval, mcnemar
from toolkit.analysis.stats import bootstrap_interval

EXACT = {  # statsmodels 0.15.0: mcnemar([[0, b], [c, 0]], exact=True).pvalue
    (10, 23): 0.03508203336969018,
    (0, 5): 0.0625,
    (7, 7): 1.0,
    (120, 150): 0.07738939898021849,
}


@pytest.mark.parametrize("pairs", EXACT)
def test_mcnemar_equals_statsmodels_and_scipy(pairs: tuple[int, int]) -> None:
    assert mcnemar(*pairs) == pytest.approx(EXACT[pairs]) == mcnemar(*pairs[::-1])
    assert mcnemar(*pairs) == pytest.approx(stats.binomtest(pairs[0], sum(pairs)).pvalue)
    b, total = min(pairs), sum(pairs)
    point = stats.binom.pmf(b, total, 0.5)
    both_tails = 2 * (stats.binom.cdf(b - 1, total, 0.5) + point / 2)
    assert mcnemar(*pairs, mid=True) == pytest.approx(both_tails if pairs[0] != pairs[1] else 1 - point / 2)


def test_mcnemar_without_a_discordant_pair_says_nothing() -> None:
    assert mcnemar(0, 0) == mcnemar(0, 0, mid=True) == 1.0


def test_mid_p_keeps_its_level_and_the_interval_its_coverage() -> None:
    random, n = np.random.default_rng(0), 150
    none = random.multinomial(n, [0.5, 0.1, 0.1, 0.3], 4000)
    wrong = np.mean([mcnemar(int(b), int(c), mid=True) < 0.05 for b, c in none[:, 1:3]])
    assert 0.03 <= wrong <= 0.055
    some = random.multinomial(n, [0.5, 0.1, 0.15, 0.25], 4000)
    bounds = np.array([discordant_interval(int(b), int(c), n) for b, c in some[:, 1:3]])
    assert 0.93 <= np.mean((bounds[:, 0] <= 0.05) & (0.05 <= bounds[:, 1])) <= 0.97


def test_the_paired_bootstrap_keeps_its_level_and_finds_a_difference() -> None:
    random = np.random.default_rng(2)
    wrong = [
        bootstrap_p(random.beta(0.6, 1.2, 60) - random.beta(0.6, 1.2, 60), 499, seed) <= 0.05 for seed in range(400)
    ]
    assert 0.03 <= np.mean(wrong) <= 0.07
    items = random.normal(0.02, 0.1, 300)
    assert bootstrap_p(items) == pytest.approx(stats.ttest_1samp(items, 0).pvalue, abs=0.003)
    assert bootstrap_p([0.0, 0.0]) == 1.0 and bootstrap_p([0.1, 0.1], 99) == 0.01


def test_the_interval_of_paired_scores_covers_the_truth() -> None:
    random, hits = np.random.default_rng(3), 0
    for seed in range(300):
        first = random.beta(2, 3, 80)
        found = bootstrap_interval(
            np.clip(first + random.normal(0.05, 0.1, 80), -1, 2) - first, resamples=999, seed=seed
        )
        hits += found[0] <= 0.05 <= found[1]
    assert 0.93 <= hits / 300 <= 0.97


def test_right_and_wrong_answers_are_compared_by_discordant_pairs() -> None:
    first, second = np.zeros(200), np.zeros(200)
    first[:80], second[10:103] = 1, 1  # 10 that the first alone has right, 23 that the second alone has
    found = compare(first, second)
    assert (found.only_first, found.only_second, found.n) == (10, 23, 200)
    assert found.difference == pytest.approx(0.065) and found.low < 0.065 < found.high
    assert found.p == mcnemar(10, 23, mid=True) and found.test == "McNemar mid-p"
    assert found.verdict() == "better" and compare(second, first).verdict() == "worse"
    assert found.verdict(p=0.2) == "not resolved"
    apart = second - first
    assert found.effect == pytest.approx(apart.mean() / apart.std(ddof=1))


def test_other_scores_are_compared_by_the_bootstrap() -> None:
    random = np.random.default_rng(4)
    first = random.beta(2, 3, 150)
    found = compare(first, np.clip(first + random.normal(0.05, 0.1, 150), 0, 1))
    assert found.test == "paired bootstrap" and found.only_first is None and found.verdict() == "better"
    assert found.low < found.difference < found.high and found.low > 0
    assert compare(first, first).verdict() == "same scores"
    assert compare(first + 0.1, first, metric="bits_per_byte").verdict() == "better"  # fewer bits are better


def test_items_that_do_not_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="3 items of the first model and 2 of the second"):
        compare([1, 0, 1], [1, 0])
    with pytest.raises(ValueError, match="1 of 2 values are missing"):
        compare([1, np.nan], [1, 0])
