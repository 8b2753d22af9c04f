"""Checkpoints that are probably not what they are called: their bits on the fixed text break the curve or repeat.

A conversion that went wrong loads, runs and is evaluated; so does a checkpoint that was published twice. What shows is
the curve over the steps: it falls or wobbles a little, but no checkpoint stands out from both of its neighbours, and
no two agree to five decimals.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from math import log
from typing import TYPE_CHECKING, Any

from toolkit.manifest.index import Summary
from toolkit.study import Cell, axes

if TYPE_CHECKING:
    import pyarrow as pa

BITS = ("bits_per_byte", "bits_per_token")
DECIMALS = 5
BREAK = 0.03  # in natural logarithms: 3 %; checkpoints of one run wobble by less than 1 % around their curve


def breaks(values: Sequence[float]) -> list[int]:
    """Positions whose value lies more than 3 % outside of what its two neighbours span.

    However steep a curve falls, its points lie between their neighbours, but for one where it turns and goes on. The
    last value has one neighbour, and may only not rise by more than the curve was rising before. A value that stands
    out makes those beside it stand out as well: the one without which the rest is smooth is meant, or each where that
    holds of several. Values are positive; fewer than three have no trend.
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
    inside = [
        0.0 if _turns(x, i) else max(0.0, x[i] - max(x[i - 1], x[i + 1]), min(x[i - 1], x[i + 1]) - x[i])
        for i in range(1, len(x) - 1)
    ]
    return [*inside, max(0.0, x[-1] - max(x[-2], 2 * x[-2] - x[-3]))]


def _turns(x: Sequence[float], i: int) -> bool:
    """Whether the curve turns at a value and goes on in both directions: a model begins to forget there, say."""
    if i + 2 >= len(x):
        return False
    before, after = x[i] - x[i - 1], x[i + 1] - x[i]
    came = before < 0 if i < 2 else (x[i - 1] - x[i - 2]) * before > 0
    return before * after < 0 and came and (x[i + 2] - x[i + 1]) * after > 0


def repeats(values: Sequence[float]) -> list[tuple[int, int]]:
    """Pairs of positions whose values are equal to five decimals."""
    return [
        (i, j)
        for i, j in combinations(range(len(values)), 2)
        if round(values[i], DECIMALS) == round(values[j], DECIMALS)
    ]


def checkpoint_axis(names: Sequence[str]) -> str | None:
    """The axis of a study that counts its checkpoints: step or tokens; None if it has neither."""
    return next((axis for axis in ("step", "tokens") if axis in names), None)


def suspects(table: "pa.Table") -> list[str]:
    """A sentence for every suspect in the long table of a study (`toolkit.analysis.table.measure`)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from toolkit.analysis.gaps import keys

    over = checkpoint_axis(table.column_names)
    if over is None:
        return []
    rows = table.filter(pc.is_in(table["metric"].cast(pa.string()), pa.array(BITS)))
    # Bits of a task are an evaluation's, of few items; those of the fixed text belong to the checkpoint and have none.
    own = pc.is_null(rows["task"]) if "task" in rows.column_names else pa.array([True] * len(rows))
    rows = rows.filter(pc.and_(own, pc.and_(pc.is_valid(rows["value"]), pc.is_valid(rows[over]))))
    points = ({key: row[key] for key in keys(table)} for row in rows.to_pylist())
    return _sentences(over, zip(points, rows["value"].to_pylist()))


def suspects_of(cells: Sequence[Cell], records: Mapping[str, Summary]) -> dict[str, list[str]]:
    """Stage -> the same sentences, from the records of done cells (`index.records`), without a table."""
    over = checkpoint_axis(axes(cells))
    points: dict[str, list[tuple[Mapping[str, Any], float]]] = {}
    for cell in {cell.fingerprint: cell for cell in cells if over in cell.coords}.values():
        made = records.get(cell.fingerprint)
        if made is not None and '"bits_per_' in made.metrics:
            measured = json.loads(made.metrics)
            place = {"stage": cell.stage, **cell.coords}
            found = points.setdefault(cell.stage, [])
            found += [({**place, "metric": name}, measured[name]) for name in BITS if name in measured]
    return {stage: said for stage, found in points.items() if over and (said := _sentences(over, found))}


def _sentences(over: str, points: Iterable[tuple[Mapping[str, Any], float]]) -> list[str]:
    """points: what tells a measurement from others, `over` included, and the bits."""
    curves: dict[tuple[str, ...], list[tuple[float, float]]] = {}
    for place, value in points:
        if not isinstance(place[over], str):
            same = tuple(f"{key}={_show(at)}" for key, at in place.items() if key != over and at is not None)
            curves.setdefault(same, []).append((place[over], value))
    found = []
    for same, curve in curves.items():
        curve.sort()
        values = [value for _, value in curve]
        what = ", ".join(same)
        for i in breaks(values):
            beside = " and ".join(f"{values[n]:.5f}" for n in (i - 1, i + 1) if n < len(values))
            found.append(f"{what}: {over} {curve[i][0]} has {values[i]:.5f}, its neighbours {beside}")
        for i, j in repeats(values):
            found.append(f"{what}: {over} {curve[i][0]} and {curve[j][0]} both have {values[i]:.5f}")
    return found


def _show(label: Any) -> str:
    return str(label).lower() if isinstance(label, bool) else str(label)
