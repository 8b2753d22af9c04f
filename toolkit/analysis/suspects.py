"""Checkpoints that are probably not what they are called: their bits on the fixed text break the curve or repeat.

A conversion that went wrong loads, runs and is evaluated; so does a checkpoint that was published twice. What shows is
the curve over the steps: it falls or wobbles a little, but no checkpoint stands out from both of its neighbours, and
no two agree to five decimals.
"""

from collections.abc import Sequence
from itertools import combinations
from math import inf, log

import pyarrow as pa
import pyarrow.compute as pc

from toolkit.analysis.figures import checkpoint_axis
from toolkit.analysis.gaps import keys, show

BITS = ("bits_per_byte", "bits_per_token")
DECIMALS = 5
BREAK = 0.03  # in natural logarithms: 3 %; checkpoints of one run wobble by less than 1 % around their curve


def breaks(values: Sequence[float]) -> list[int]:
    """Positions whose value lies more than 3 % outside of what its two neighbours span.

    However steep a curve falls, its points lie between their neighbours. The last value has one neighbour, and may only
    not rise. A value that stands out makes those beside it stand out as well: the one without which the rest is smooth
    is meant, or each where that holds of several. Values are positive; fewer than three have no trend.
    """
    kept, found = list(range(len(values))), []
    while worst := _worst([log(values[i]) for i in kept]):
        found += [kept[i] for i in worst]
        kept = [place for i, place in enumerate(kept) if i not in worst]
    return sorted(found)


def _worst(x: Sequence[float]) -> list[int]:
    out = [i + 1 for i, size in enumerate(_excess(x)) if size > BREAK]
    left = {i: round(sum(_excess([*x[:i], *x[i + 1 :]])), 9) for i in out}
    return [i for i in out if left[i] == min(left.values())]


def _excess(x: Sequence[float]) -> list[float]:
    """How far every value but the first is outside of what lies beside it."""
    if len(x) < 3:
        return []
    beside = [*zip(x, x[2:]), (-inf, x[-2])]
    return [max(0.0, value - max(pair), min(pair) - value) for value, pair in zip(x[1:], beside)]


def repeats(values: Sequence[float]) -> list[tuple[int, int]]:
    """Pairs of positions whose values are equal to five decimals."""
    return [
        (i, j)
        for i, j in combinations(range(len(values)), 2)
        if round(values[i], DECIMALS) == round(values[j], DECIMALS)
    ]


def suspects(table: pa.Table) -> list[str]:
    """A sentence for every suspect in the long table of a study (`toolkit.analysis.table.measure`)."""
    over = checkpoint_axis(table.column_names)
    if over is None:
        return []
    rows = table.filter(pc.is_in(table["metric"].cast(pa.string()), pa.array(BITS)))
    rows = rows.filter(pc.and_(pc.is_valid(rows["value"]), pc.is_valid(rows[over])))
    curves: dict[tuple[str, ...], list[tuple[float, float]]] = {}
    for row in rows.to_pylist():
        if not isinstance(row[over], str):
            same = tuple(f"{key}={show(row[key])}" for key in keys(table) if key != over and row[key] is not None)
            curves.setdefault(same, []).append((row[over], row["value"]))
    found = []
    for same, points in curves.items():
        points.sort()
        values = [value for _, value in points]
        what = ", ".join(same)
        for i in breaks(values):
            beside = " and ".join(f"{values[n]:.5f}" for n in (i - 1, i + 1) if n < len(values))
            found.append(f"{what}: {over} {points[i][0]} has {values[i]:.5f}, its neighbours {beside}")
        for i, j in repeats(values):
            found.append(f"{what}: {over} {points[i][0]} and {points[j][0]} both have {values[i]:.5f}")
    return found
