"""How a score moves over pre-training: its slope and one break over log tokens; and whether a cheap signal ranks
checkpoints as tuning does.

Checkpoints are few (the eight of a typical study), so that everything here has an interval or a p-value, and few points
give wide ones.
"""

from dataclasses import dataclass
from functools import cache
from itertools import permutations
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from toolkit.analysis.stats import Numbers, finite, z_score

EXACT = 8  # pairs of which all orders are tried
PLACES = 200  # candidates for a break, evenly spaced over log tokens


@dataclass(frozen=True, kw_only=True)
class Slope:
    """Change of the score per tenfold of tokens, with Student's t interval; `p` of the hypothesis that it is 0."""

    slope: float
    low: float
    high: float
    intercept: float
    p: float
    n: int


def slope(tokens: ArrayLike, score: ArrayLike, confidence: float = 0.95) -> Slope:
    """Least squares of the score on log10(tokens): slope ± t(n - 2) * its standard error (`scipy.stats.linregress`).

    Raises:
        ValueError: fewer than three points or two places, a missing number, or tokens that are not above 0.
    """
    z_score(confidence)
    x, y = _points(tokens, score, 3)
    fit = stats.linregress(x, y)
    half = float(stats.t.ppf(0.5 + confidence / 2, len(x) - 2) * fit.stderr)
    return Slope(
        slope=float(fit.slope), low=float(fit.slope) - half, high=float(fit.slope) + half,
        intercept=float(fit.intercept), p=float(fit.pvalue), n=len(x),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Break:
    """Where the slope changes, in tokens, with its interval; the slopes per tenfold before and after.

    `p` is of the hypothesis that one straight line does as well; the interval means little where it is not small.
    """

    tokens: float
    low: float
    high: float
    before: float
    after: float
    p: float
    n: int


def change_point(
    tokens: ArrayLike, score: ArrayLike, confidence: float = 0.95, permutations: int = 999, seed: int = 0
) -> Break:
    """One break: two straight lines over log10(tokens) that meet, at the place with the least sum of squares.

    y = a + b x + c max(0, x - t). The interval holds every t whose sum of squares is at most
    RSS(best) * (1 + F(confidence; 1, n - 4) / (n - 4)) (likelihood-ratio set). The p-value is that of the greatest
    F over all t among lines with permuted residuals: (1 + #{F* >= F}) / (permutations + 1).
    D. J. Hudson, "Fitting segmented curves whose join points have to be estimated", JASA 61 (1966), 1097-1129;
    D. Freedman, D. Lane, J. Bus. Econ. Stat. 1 (1983), 292-298 for the permutation.

    Raises:
        ValueError: fewer than six points or five places, a missing number, or tokens that are not above 0.
    """
    z_score(confidence)
    x, y = _points(tokens, score, 6)
    places = np.unique(x)
    if len(places) < 5:
        raise ValueError(f"a break needs at least 5 different numbers of tokens, these are {len(places)}")
    candidates = np.linspace(places[1], places[-2], PLACES)
    bases = _bases(x, candidates)
    line = np.linalg.qr(np.column_stack([np.ones_like(x), x]))[0]
    left = _rest(bases, y[:, None])[:, 0]
    best = int(np.argmin(left))
    bound = left[best] * (1 + stats.f.ppf(confidence, 1, len(x) - 4) / (len(x) - 4))
    inside = np.flatnonzero(left <= bound)
    ends = candidates[max(0, inside[0] - 1)], candidates[min(PLACES - 1, inside[-1] + 1)]  # outward to the grid
    knee = np.column_stack([np.ones_like(x), x, np.maximum(0, x - candidates[best])])
    before, bend = np.linalg.lstsq(knee, y, rcond=None)[0][1:]
    return Break(
        tokens=float(10 ** candidates[best]), low=float(10 ** ends[0]), high=float(10 ** ends[1]),
        before=float(before), after=float(before + bend), p=_break_p(bases, line, y, permutations, seed), n=len(x),
    )  # fmt: skip


def _bases(x: Numbers, candidates: Numbers) -> Numbers:
    """An orthonormal basis of 1, x, max(0, x - t) for each candidate t: candidates x points x 3."""
    knees = np.maximum(0, x - candidates[:, None])
    plain = np.broadcast_to(x, knees.shape)
    return np.linalg.qr(np.stack([np.ones_like(knees), plain, knees], axis=2))[0]


def _rest(bases: Numbers, columns: Numbers) -> Numbers:
    """Residual sums of squares: one row for each basis, one column for each column of y."""
    whole = np.sum(columns**2, 0)
    rest = whole - np.sum((bases.transpose(0, 2, 1) @ columns) ** 2, 1)
    return np.maximum(rest, 1e-15 * whole)  # rounding would leave less than nothing where the fit is perfect


def _break_p(bases: Numbers, line: Numbers, y: Numbers, permutations: int, seed: int) -> float:
    """The gain of the best break over a straight line, against that of permuted residuals."""
    fitted = line @ (line.T @ y)
    residuals = y - fitted
    if np.sum(residuals**2) <= 1e-20 * max(1.0, float(np.sum(y**2))):
        return 1.0  # a straight line to the last digit
    shuffled = np.random.default_rng(seed).permuted(np.tile(residuals, (permutations, 1)), axis=1).T + fitted[:, None]
    columns = np.column_stack([y, shuffled])
    straight = np.sum(columns**2, 0) - np.sum((line.T @ columns) ** 2, 0)
    ratio = _rest(bases, columns).min(0) / straight
    return float((1 + np.sum(ratio[1:] <= ratio[0] * (1 + 1e-9))) / (permutations + 1))


@dataclass(frozen=True, kw_only=True)
class Rank:
    """A rank correlation with its bootstrap interval; `p` is of the hypothesis that there is none."""

    value: float
    low: float
    high: float
    p: float
    n: int
    method: str


def rank_correlation(
    signal: ArrayLike,
    reached: ArrayLike,
    method: Literal["spearman", "kendall"] = "spearman",
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Rank:
    """Whether a cheap signal (base loss, few-shot score) ranks models as what tuning reaches does.

    Spearman's rho or Kendall's tau-b, with the percentile interval of resampled pairs. The p-value is scipy's, of eight
    pairs or fewer exact: the share of all orders of one side that correlate as strongly. The interval is NaN where the
    correlation of most resamples is not defined. C. Spearman, Am. J. Psychol. 15 (1904), 72-101;
    M. G. Kendall, Biometrika 33 (1945), 239-251.

    Raises:
        ValueError: fewer than four pairs, a missing number, an unknown method, or a side that does not vary.
    """
    x, y = finite(signal, "the signal", 4), finite(reached, "what is reached", 4)
    if len(x) != len(y) or np.ptp(x) == 0 or np.ptp(y) == 0:
        raise ValueError(f"{len(x)} and {len(y)} values: give pairs, and on each side values that differ")
    if method not in ("spearman", "kendall"):
        raise ValueError(f"method {method!r} must be 'spearman' or 'kendall'")
    z_score(confidence)
    measure = {"spearman": stats.spearmanr, "kendall": stats.kendalltau}[method]
    found = measure(x, y)
    p = _exact_p(x, y, method) if len(x) <= EXACT else float(found.pvalue)
    rows = np.random.default_rng(seed).integers(0, len(x), (resamples, len(x)))
    drawn = _spearman(x[rows], y[rows]) if method == "spearman" else _kendall(x[rows], y[rows])
    low, high = np.nanquantile(drawn, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Rank(value=float(found.statistic), low=float(low), high=float(high), p=p, n=len(x), method=method)


def _exact_p(x: Numbers, y: Numbers, method: str) -> float:
    """Scipy's approximation says 0 of six pairs in perfect order, which chance gives once in 360."""
    orders = _orders(len(x))
    if method == "kendall":
        drawn = _kendall(np.broadcast_to(x, orders.shape), y[orders])
    else:  # what varies between orders is the sum of products of ranks
        a, b = (stats.rankdata(side) - (len(side) + 1) / 2 for side in (x, y))
        drawn = b[orders] @ a
    return float(np.mean(np.abs(drawn) >= abs(drawn[0]) * (1 - 1e-9)))


@cache
def _orders(count: int) -> NDArray[np.intp]:
    return np.array(list(permutations(range(count))))


def _spearman(x: Numbers, y: Numbers) -> Numbers:
    """Of each row: Pearson's correlation of mid-ranks."""
    a, b = (stats.rankdata(side, axis=1) - (side.shape[1] + 1) / 2 for side in (x, y))
    with np.errstate(invalid="ignore"):  # a resample of one pair over and over
        return np.sum(a * b, 1) / np.sqrt(np.sum(a**2, 1) * np.sum(b**2, 1))


def _kendall(x: Numbers, y: Numbers) -> Numbers:
    """Of each row: tau-b, from the signs of all differences."""
    total = np.zeros((3, len(x)))
    for shift in range(1, x.shape[1]):
        a, b = (np.sign(side[:, shift:] - side[:, :-shift]) for side in (x, y))
        total += np.sum([a * b, a * a, b * b], 2)
    with np.errstate(invalid="ignore"):
        return total[0] / np.sqrt(total[1] * total[2])


def _points(tokens: ArrayLike, score: ArrayLike, least: int) -> tuple[Numbers, Numbers]:
    x, y = finite(tokens, "tokens", least), finite(score, "scores", least)
    if len(x) != len(y) or len(np.unique(x)) < 2:
        raise ValueError(f"{len(x)} tokens and {len(y)} scores: give a score for each, at two or more places")
    if np.any(x <= 0):
        raise ValueError(f"tokens {x.min():g} has no logarithm: leave the initialisation out")
    order = np.argsort(x, kind="stable")
    return np.log10(x[order]), y[order]
