"""Intervals for single measurements: what the number of items allows to say about a score.

A proportion of n independent items gets the Wilson score interval, which keeps its coverage near 0 and 1 where the
normal one does not; any other metric gets value ± z * stderr from the standard error that came with it, or a bootstrap
interval where its items are at hand.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

# metrics whose items score 0 or 1; others (F1, ROUGE-L, loss) are means of real numbers
PROPORTIONS = ("acc", "acc_norm", "acc_bytes", "exact_match", "acc_mutual_info", "em", "pass@1")
LESS_IS_BETTER = (
    "bits_per_byte",
    "byte_perplexity",
    "word_perplexity",
    "perplexity",
    "brier_score",
    "ter",
)  # as lm-eval
Numbers = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """Bounds of equal shape, NaN where no interval is known; `method` is "wilson", "normal" or "" for each."""

    low: Numbers
    high: Numbers
    method: NDArray[Any]


def z_score(confidence: float) -> float:
    """The two-sided normal quantile: 1.959964 for 0.95.

    Raises:
        ValueError: the confidence is not between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence!r} must lie between 0 and 1, for example 0.95")
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def wilson(proportion: ArrayLike, n: ArrayLike, confidence: float = 0.95) -> tuple[Numbers, Numbers]:
    """The Wilson score interval of a proportion of `n` items.

    (p + z^2/2n ± z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)
    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927), 209-212.
    """
    p, size, z = np.asarray(proportion, np.float64), np.asarray(n, np.float64), z_score(confidence)
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = 1 + z**2 / size
        middle = (p + z**2 / (2 * size)) / scale
        half = z / scale * np.sqrt(p * (1 - p) / size + z**2 / (4 * size**2))
    # the formula gives exactly 0 and 1 at the ends; rounding would leave 1e-17 beside them
    return np.where(p == 0, 0.0, middle - half), np.where(p == 1, 1.0, middle + half)


def normal(value: ArrayLike, stderr: ArrayLike, confidence: float = 0.95) -> tuple[Numbers, Numbers]:
    """value ± z * stderr, for the mean of many items (central limit theorem)."""
    centre, half = np.asarray(value, np.float64), z_score(confidence) * np.asarray(stderr, np.float64)
    return centre - half, centre + half


def intervals(metric: str, value: ArrayLike, stderr: ArrayLike, n: ArrayLike, confidence: float = 0.95) -> Intervals:
    """The interval of each measurement of one metric.

    Wilson where the metric is a proportion (`PROPORTIONS`; a filter behind a comma or a stroke is ignored, as in
    "exact_match/flexible") and value * n is a whole number of items; a mean over subtasks is not, and takes its
    standard error, as others do.

    Args:
        metric: name of the metric.
        value, stderr, n: arrays of one shape; NaN where unknown.
    """
    values, errors, sizes = (np.asarray(x, np.float64) for x in (value, stderr, n))
    items = values * sizes
    with np.errstate(invalid="ignore"):
        whole = (
            (sizes > 0)
            & (values >= 0)
            & (values <= 1)
            & (np.abs(items - np.round(items)) < 1e-6 * np.maximum(sizes, 1))
        )
    binary = whole & (plain(metric) in PROPORTIONS)
    low_w, high_w = wilson(values, sizes, confidence)
    low_n, high_n = normal(values, errors, confidence)
    method = np.where(binary, "wilson", np.where(np.isfinite(low_n), "normal", ""))
    return Intervals(low=np.where(binary, low_w, low_n), high=np.where(binary, high_w, high_n), method=method)


def plain(metric: str) -> str:
    """A metric without its filter: of `exact_match,flexible`, as lm-eval writes it, and `exact_match/flexible`."""
    return re.split("[,/]", metric)[0]


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean of k independent runs (seeds) and Student's t interval: mean ± t(k - 1) * sd / sqrt(k).

    The bounds are NaN for a single run, which says nothing of the spread between runs.
    Student, "The probable error of a mean", Biometrika 6 (1908), 1-25.
    """
    runs = np.asarray(values, np.float64)
    if len(runs) < 2:
        return float(runs.mean()), float("nan"), float("nan")
    low, high = mean_bounds(runs.mean(), runs.std(ddof=1) / np.sqrt(len(runs)), len(runs), confidence)
    return float(runs.mean()), float(low), float(high)


def mean_bounds(
    mean: ArrayLike, stderr: ArrayLike, count: ArrayLike, confidence: float = 0.95
) -> tuple[Numbers, Numbers]:
    """Student's t interval from means of `count` runs and their standard errors (sd / sqrt(count)); NaN for one run."""
    centre, runs = np.asarray(mean, np.float64), np.asarray(count)
    half = np.full(np.shape(runs), np.nan)
    if np.any(several := runs > 1):
        from scipy.special import stdtrit  # a quarter of a second that most commands need not spend

        half = np.where(several, stdtrit(np.maximum(runs - 1, 1), 0.5 + confidence / 2) * np.asarray(stderr), np.nan)
    return centre - half, centre + half


def bootstrap_interval(
    items: ArrayLike, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The bias-corrected and accelerated (BCa) bootstrap interval of the mean over `items`, of any metric.

    Its bounds are the quantiles Phi(b + (b + z) / (1 - a (b + z))) of the means of resamples: z = ± z(confidence), b is
    the normal quantile of the share of resamples below the mean, a = sum (x - mean)^3 / (6 (sum (x - mean)^2)^1.5).
    B. Efron, "Better bootstrap confidence intervals", JASA 82 (1987), 171-185. `scipy.stats.bootstrap` gives the same,
    and leaves each item out in turn to find `a`, which takes 12 s for 40,000 items.
    Items that are all equal give an interval without width: they say nothing of the spread.

    Raises:
        ValueError: fewer than two items, or one that is not a number.
    """
    values, z, normal_ = finite(items, "items"), z_score(confidence), NormalDist()
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    apart = values - values.mean()
    means = resampled(apart, resamples, seed, lambda drawn: drawn.mean(1))
    below = (np.sum(means < 0) + np.sum(means == 0) / 2) / resamples
    bias = normal_.inv_cdf(float(np.clip(below, 0.5 / resamples, 1 - 0.5 / resamples)))
    skew = float(np.sum(apart**3) / (6 * np.sum(apart**2) ** 1.5))
    places = [normal_.cdf(bias + (bias + end) / (1 - skew * (bias + end))) for end in (-z, z)]
    low, high = values.mean() + np.quantile(means, places)
    return float(low), float(high)


def resampled(values: Numbers, resamples: int, seed: int, statistic: Callable[[Numbers], Numbers]) -> Numbers:
    """`statistic` (rows -> numbers) of resamples with replacement, a few million values at once."""
    rng, found, rows = np.random.default_rng(seed), [], max(1, 2_000_000 // len(values))
    for done in range(0, resamples, rows):
        drawn = values[rng.integers(0, len(values), (min(rows, resamples - done), len(values)))]
        found.append(statistic(drawn))
    return np.concatenate(found)


def smallest_difference(n: int, sd: float = 0.5, power: float = 0.8, confidence: float = 0.95) -> float:
    """The smallest true difference that a two-sided test on n items finds with probability `power`.

    (z(1 - alpha/2) + z(power)) * sd / sqrt(n), with alpha = 1 - confidence; normal approximation of a mean.
    J. Cohen, "Statistical power analysis for the behavioral sciences" (1988), chapter 2. 80 items resolve 0.16.

    Args:
        n: items, each answered by both sides of a comparison.
        sd: of the quantity per item. 0.5, the most that 0 or 1 can have, is a score held against a fixed number, or two
            models that disagree on a quarter of the items; of paired answers take the standard deviation of their
            differences; two models on different items have sqrt(2) times that of one.

    Raises:
        ValueError: no items, a negative sd, a power or confidence that is no probability.
    """
    if n < 1 or sd < 0 or not 0 < power < 1:
        raise ValueError(f"n={n}, sd={sd}, power={power}: give n >= 1, sd >= 0 and a power between 0 and 1, as 0.8")
    return (z_score(confidence) + NormalDist().inv_cdf(power)) * sd / float(np.sqrt(n))


def holm(p_values: ArrayLike) -> Numbers:
    """p-values of a family of tests, adjusted so that the chance of any false finding stays below the level.

    The i-th smallest of m becomes max over j <= i of min(1, (m - j + 1) * p_(j)); NaN (no test) stays and does not
    count. S. Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6 (1979), 65-70.

    Raises:
        ValueError: a p-value outside of [0, 1].
    """
    p = np.asarray(p_values, np.float64)
    tested = np.flatnonzero(~np.isnan(p))
    if np.any((p[tested] < 0) | (p[tested] > 1)):
        raise ValueError(f"p-values must lie between 0 and 1, these reach from {np.nanmin(p)} to {np.nanmax(p)}")
    order = tested[np.argsort(p[tested], kind="stable")]
    adjusted = np.full(p.shape, np.nan)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return adjusted


def finite(values: ArrayLike, what: str, least: int = 2) -> Numbers:
    """One-dimensional numbers, `least` or more of them, none missing.

    Raises:
        ValueError: too few, or a NaN or infinity among them.
    """
    numbers = np.asarray(values, np.float64)
    if numbers.ndim != 1 or len(numbers) < least:
        raise ValueError(f"{what}: {numbers.size} values, and at least {least} in one dimension are needed")
    if not np.all(np.isfinite(numbers)):
        raise ValueError(f"{what}: {np.sum(~np.isfinite(numbers))} of {len(numbers)} values are missing or infinite")
    return numbers
