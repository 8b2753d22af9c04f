"""Spread between seeds kept apart from sampling error: which part of an uncertainty would more seeds remove, and which
only more items.

Seeds score the same items, so the standard error of a single run and the spread between runs are not two estimates of
one thing: an item that is hard for every seed is in the first and not in the second.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from toolkit.analysis.stats import z_score


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Variance components of a score (squared units of the score), and the mean with its interval.

    seed: between training runs. item: between items, for all runs alike. rest: what an item has of a run of its own.
    share_of_seeds: of the variance of the mean, the part that more seeds would shrink beyond what more items do:
        (seed / k) / variance.
    """

    mean: float
    low: float
    high: float
    seed: float
    item: float
    rest: float
    variance: float
    share_of_seeds: float
    seeds: int
    items: int


def spread(scores: ArrayLike, confidence: float = 0.95) -> Spread:
    """Split the variance of k seeds (rows) on the same n items (columns).

    score[s, i] = mean + seed_s + item_i + rest_si, a two-way random-effects model without replication:
    rest = MS_rest, seed = max(0, (MS_seed - MS_rest) / n), item = max(0, (MS_item - MS_rest) / k), and for the mean
    over seeds and items variance = seed / k + item / n + rest / (k n) = (MS_seed + MS_item - MS_rest) / (k n), with
    Satterthwaite's degrees of freedom. S. R. Searle, G. Casella, C. E. McCulloch, "Variance components" (1992),
    chapter 4; F. E. Satterthwaite, Biometrics Bulletin 2 (1946), 110-114.

    Raises:
        ValueError: fewer than two seeds or two items, or a score that is missing.
    """
    z_score(confidence)
    x = np.asarray(scores, np.float64)
    if x.ndim != 2 or min(x.shape) < 2 or not np.all(np.isfinite(x)):
        raise ValueError(f"scores of shape {x.shape}: give at least two seeds (rows) by two items, none missing")
    k, n = x.shape
    mean, rows, columns = x.mean(), x.mean(1), x.mean(0)
    of_seed = n * np.sum((rows - mean) ** 2) / (k - 1)
    of_item = k * np.sum((columns - mean) ** 2) / (n - 1)
    of_rest = np.sum((x - rows[:, None] - columns + mean) ** 2) / ((k - 1) * (n - 1))
    parts = [max(0.0, (of_seed - of_rest) / n), max(0.0, (of_item - of_rest) / k), of_rest]
    # a component that is estimated below 0 is 0, and must not narrow the interval of the mean
    variance = parts[0] / k + parts[1] / n + parts[2] / (k * n)
    below = of_seed**2 / (k - 1) + of_item**2 / (n - 1) + of_rest**2 / ((k - 1) * (n - 1))
    freedom = (variance * k * n) ** 2 / below if below else 1.0
    half = float(stdtrit(freedom, 0.5 + confidence / 2) * np.sqrt(variance))
    return Spread(
        mean=float(mean), low=float(mean) - half, high=float(mean) + half,
        seed=float(parts[0]), item=float(parts[1]), rest=float(parts[2]), variance=float(variance),
        share_of_seeds=float(parts[0] / k / variance) if variance else 0.0, seeds=k, items=n,
    )  # fmt: skip
