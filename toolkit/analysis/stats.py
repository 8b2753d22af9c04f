"""Intervals for single measurements: what the number of items allows to say about a score.

A proportion of n independent items gets the Wilson score interval, which keeps its coverage near 0 and 1 where the
normal one does not; any other metric gets value ± z * stderr from the standard error that came with it.
"""

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

# metrics whose items score 0 or 1; others (F1, ROUGE-L, loss) are means of real numbers
PROPORTIONS = ("acc", "acc_norm", "acc_bytes", "exact_match", "acc_mutual_info", "em", "pass@1")
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

    Wilson where the metric is a proportion (`PROPORTIONS`; a filter behind a comma is ignored, as in
    "exact_match,flexible") and value * n is a whole number of items; a mean over subtasks is not, and takes its
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
    binary = whole & (metric.split(",")[0] in PROPORTIONS)
    low_w, high_w = wilson(values, sizes, confidence)
    low_n, high_n = normal(values, errors, confidence)
    method = np.where(binary, "wilson", np.where(np.isfinite(low_n), "normal", ""))
    return Intervals(low=np.where(binary, low_w, low_n), high=np.where(binary, high_w, high_n), method=method)


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean of k independent runs (seeds) and Student's t interval: mean ± t(k - 1) * sd / sqrt(k).

    The bounds are NaN for a single run, which says nothing of the spread between runs.
    Student, "The probable error of a mean", Biometrika 6 (1908), 1-25.
    """
    from scipy.special import stdtrit  # a quarter of a second that most commands need not spend

    runs = np.asarray(values, np.float64)
    if len(runs) < 2:
        return float(runs.mean()), float("nan"), float("nan")
    half = stdtrit(len(runs) - 1, 0.5 + confidence / 2) * runs.std(ddof=1) / np.sqrt(len(runs))
    return float(runs.mean()), float(runs.mean() - half), float(runs.mean() + half)
