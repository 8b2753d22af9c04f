"""Two models on the same items: how far apart they are, how sure that is, and what to call it.

Items that are right or wrong are compared by their discordant pairs (McNemar), others by the bootstrap over their
differences. What both share, the difficulty of the items, cancels: a paired test finds less than half the difference
that two separate intervals would show.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from toolkit.analysis.stats import (
    LESS_IS_BETTER,
    Numbers,
    bootstrap_interval,
    finite,
    plain,
    resampled,
    smallest_difference,
    z_score,
)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """`difference` is the mean of second - first over n shared items, with its interval and two-sided p-value.

    only_first, only_second: items that one alone has right; None where items are not right or wrong.
    effect: Cohen's d_z of the differences (their mean by their standard deviation), 0 where they do not vary.
    resolvable: the smallest difference that this many items would find with 80 % power, given how they vary.
    """

    first: float
    second: float
    n: int
    difference: float
    low: float
    high: float
    p: float
    test: str
    effect: float
    resolvable: float
    only_first: int | None = None
    only_second: int | None = None
    less_is_better: bool = False

    def verdict(self, level: float = 0.05, p: float | None = None) -> str:
        """`better`, `worse` (the second than the first) or `not resolved`; `p` is an adjusted one in place of its own.

        `same scores` where no item differs.
        """
        if self.difference == 0 and self.resolvable == 0:
            return "same scores"
        if (self.p if p is None else p) >= level:
            return "not resolved"
        return "better" if (self.difference > 0) != self.less_is_better else "worse"


def compare(
    first: ArrayLike, second: ArrayLike, confidence: float = 0.95, seed: int = 0, metric: str = ""
) -> Comparison:
    """Compare two models by their scores on the same items, in the same order. metric: what they are scores of; of some
    (`stats.LESS_IS_BETTER`) the smaller one is better.

    Scores that are all 0 or 1: McNemar's mid-p test, and Bonett and Price's interval. Others: the paired bootstrap.

    Raises:
        ValueError: different numbers of items, fewer than two, or one that is not a number.
    """
    one, two = finite(first, "scores of the first model"), finite(second, "scores of the second model")
    if len(one) != len(two):
        raise ValueError(f"{len(one)} items of the first model and {len(two)} of the second: pair them first")
    apart = two - one
    spread = float(apart.std(ddof=1))
    pairs: tuple[int, int] | None = None
    if np.isin(one, (0, 1)).all() and np.isin(two, (0, 1)).all():
        pairs = int(np.sum(apart < 0)), int(np.sum(apart > 0))
        low, high = discordant_interval(*pairs, len(one), confidence)
        p = mcnemar(*pairs, mid=True)
    else:
        low, high = bootstrap_interval(apart, confidence, seed=seed)
        p = bootstrap_p(apart, seed=seed)
    return Comparison(
        first=float(one.mean()),
        second=float(two.mean()),
        n=len(one),
        difference=float(apart.mean()),
        low=low,
        high=high,
        p=p,
        test="McNemar mid-p" if pairs else "paired bootstrap",
        effect=float(apart.mean() / spread) if spread else 0.0,
        resolvable=smallest_difference(len(one), spread, confidence=confidence),
        only_first=pairs[0] if pairs else None,
        only_second=pairs[1] if pairs else None,
        less_is_better=plain(metric) in LESS_IS_BETTER,
    )


def mcnemar(only_first: int, only_second: int, mid: bool = False) -> float:
    """Two-sided p-value of McNemar's test from the discordant pairs.

    Exact: 2 * P(X <= min(b, c)) with X binomial(b + c, 1/2), at most 1. Mid-p: less the probability of the observed
    min(b, c), half of it where b = c; the exact test is conservative, mid-p comes close to its level without exceeding
    it by more than a trace. Q. McNemar, Psychometrika 12 (1947), 153-157; M. W. Fagerland, S. Lydersen, P. Laake,
    "The McNemar test for binary matched-pairs data", BMC Med. Res. Methodol. 13 (2013), 91.
    """
    b, c = sorted((only_first, only_second))
    if b + c == 0:
        return 1.0
    point = float(stats.binom.pmf(b, b + c, 0.5))
    if b == c:
        return 1 - point / 2 if mid else 1.0
    exact = min(1.0, 2 * float(stats.binom.cdf(b, b + c, 0.5)))
    return exact - point if mid else exact


def discordant_interval(only_first: int, only_second: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of the difference of two paired proportions: Wald's, with one pair added to each discordant cell.

    d ± z sqrt((p12 + p21 - (p21 - p12)^2) / (n + 2)), p12 = (b + 1) / (n + 2), p21 = (c + 1) / (n + 2), d = p21 - p12.
    D. G. Bonett, R. M. Price, "Adjusted Wald confidence interval for a difference of binomial proportions based on
    paired data", J. Educ. Behav. Stat. 37 (2012), 479-488. Unlike Wald's it has a width where no pair is discordant.
    """
    p12, p21 = (only_first + 1) / (n + 2), (only_second + 1) / (n + 2)
    half = z_score(confidence) * float(np.sqrt((p12 + p21 - (p21 - p12) ** 2) / (n + 2)))
    return max(-1.0, p21 - p12 - half), min(1.0, p21 - p12 + half)


def bootstrap_p(differences: ArrayLike, resamples: int = 9999, seed: int = 0) -> float:
    """Two-sided p-value that paired differences have mean 0: (1 + #{|d* - d| >= |d|}) / (resamples + 1).

    d* are means of resampled differences, moved so that the hypothesis holds; each is divided by its standard error, as
    the observed one is, which keeps the level for few items. B. Efron, R. J. Tibshirani, "An introduction to the
    bootstrap" (1993), section 16.4.
    """
    apart = finite(differences, "differences")
    if np.ptp(apart) == 0:
        return 1.0 if apart[0] == 0 else 1 / (resamples + 1)
    observed = abs(_studentised(apart[None, :], 0.0)[0])
    moved = resampled(apart, resamples, seed, lambda drawn: _studentised(drawn, float(apart.mean())))
    return float((1 + np.sum(np.abs(moved) >= observed)) / (resamples + 1))


def _studentised(samples: Numbers, centre: float) -> Numbers:
    mean, error = samples.mean(1) - centre, samples.std(1, ddof=1) / np.sqrt(samples.shape[1])
    with np.errstate(divide="ignore", invalid="ignore"):  # a resample of one item over and over has no error
        return np.where(error > 0, mean / error, np.where(mean == 0, 0.0, np.inf))
