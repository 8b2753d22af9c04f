"""A long table turned into a rectangle: `pivot(table, rows=["step"], cols=["task"], values="acc")`.

Every place of the rectangle holds one measurement, or the mean over axes that were named for it; several measurements
in one place are an error that names the axes they differ in. A cell that was not run keeps its place and shows its
state.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from toolkit.analysis.gaps import NUMBERS, encode, keys, show, spread_gaps, state_texts
from toolkit.analysis.stats import intervals, mean_bounds
from toolkit.lookup import unknown


@dataclass(frozen=True, kw_only=True)
class Pivot:
    """A rectangle of R row labels and C column labels; every array is R x C.

    value: the measurement, or the mean over `mean_over`; NaN also where there is none: look at `mark` and `count`.
    stderr: of the measurement; of a mean, the standard deviation over its members by sqrt(count) (it holds the spread
        over the axes averaged over, seeds say, not the sampling error of each); NaN where unknown.
    low, high: the interval of a measurement (`stats.intervals`), of a mean Student's t interval; NaN where unknown.
    count: measurements in this place. cells: measurements and missing cells in this place; 0 where the study has no
    such cell.
    mark: what to show instead of a number (`never-run`, `failed: DISK_FULL`), or None.
    """

    rows: tuple[str, ...]
    cols: tuple[str, ...]
    values: str
    mean_over: tuple[str, ...]
    row_labels: tuple[tuple[Any, ...], ...]
    col_labels: tuple[tuple[Any, ...], ...]
    value: np.ndarray
    stderr: np.ndarray
    low: np.ndarray
    high: np.ndarray
    count: np.ndarray
    cells: np.ndarray
    mark: np.ndarray


def pivot(
    table: pa.Table,
    rows: Sequence[str],
    cols: Sequence[str],
    values: str,
    where: Mapping[str, Sequence[str]] | None = None,
    mean_over: Sequence[str] = (),
) -> Pivot:
    """`table` (of `measure`) by the columns `rows` and `cols`; `values` is a metric, or one of value, stderr, n, state.

    Raises:
        ValueError: an unknown column, metric or coordinate; several measurements in one place (which axes differ, and
            how to choose, show or average them).
    """
    check_columns(table, [*rows, *cols, *mean_over])
    chosen = choose(table if values == "state" else _of_metric(spread_gaps(table), values), where or {})
    row_codes, row_labels = _labels(chosen, rows)
    col_codes, col_labels = _labels(chosen, cols)
    place = row_codes * len(col_labels) + col_codes
    shape = (len(row_labels), len(col_labels))
    if values == "state":
        parts = _states(chosen, place, shape)
    else:
        _one_each(chosen, place, [*rows, *cols], mean_over, values)
        parts = _numbers(chosen, place, shape, values if values in NUMBERS else "value")
    return Pivot(
        rows=tuple(rows),
        cols=tuple(cols),
        values=values,
        mean_over=tuple(mean_over),
        row_labels=row_labels,
        col_labels=col_labels,
        **parts,
    )


def parse_where(words: Sequence[str]) -> dict[str, list[str]]:
    """`["seed=0", "model=base", "model=tuned"]` as `{"seed": ["0"], "model": ["base", "tuned"]}`.

    Raises:
        ValueError: a word without `=`.
    """
    found: dict[str, list[str]] = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not sign:
            raise ValueError(f"--where {word!r} must be COLUMN=VALUE, for example --where seed=0")
        found.setdefault(name, []).append(value)
    return found


def choose(table: pa.Table, where: Mapping[str, Sequence[str]]) -> pa.Table:
    """The rows whose columns have one of the given values, compared as text or as numbers (`1e-5` is `0.00001`).

    A missing cell whose task or metric is asked for has what its neighbours measured (`gaps.spread_gaps`).

    Raises:
        ValueError: no such column, no row has that value, or no row has all of them.
    """
    if {"task", "metric"} & set(where):
        table = spread_gaps(table)
    keep = np.ones(table.num_rows, bool)
    for name, wanted in where.items():
        check_columns(table, [name])
        codes, labels = encode(table[name])
        for word in wanted:
            if not any(_same(label, word) for label in labels):
                raise ValueError(unknown(f"value of {name!r}", word, [show(v) for v in labels]) + " (--where)")
        hits = [i for i, label in enumerate(labels) if any(_same(label, word) for word in wanted)]
        keep &= np.isin(codes, hits)
    if where and not keep.any():
        words = " ".join(f"--where {name}={word}" for name, some in where.items() for word in some)
        raise ValueError(f"no row of the table has all of {words}: leave one out")
    return table.filter(pa.array(keep)) if where else table


def check_columns(table: pa.Table, names: Sequence[str]) -> None:
    """Raise ValueError for a column that labels cannot come from."""
    for name in names:
        if name not in table.column_names or name in NUMBERS:
            raise ValueError(unknown("column", name, [n for n in table.column_names if n not in NUMBERS]))


def _same(label: Any, word: Any) -> bool:
    if label is None or show(label) == str(word):
        return show(label) == str(word)
    try:
        return not isinstance(label, (str, bool)) and float(label) == float(word)
    except ValueError:
        return False


def _labels(table: pa.Table, names: Sequence[str]) -> tuple[np.ndarray, tuple[tuple[Any, ...], ...]]:
    """The position of each row among the combinations of labels that occur, and these combinations in order."""
    whole = np.zeros(table.num_rows, np.int64)
    columns = [encode(table[name]) for name in names]
    for codes, labels in columns:
        whole = whole * max(len(labels), 1) + codes
    used, position = np.unique(whole, return_inverse=True)
    parts = []
    for _, labels in reversed(columns):
        parts.append([labels[i] for i in used % len(labels)])
        used = used // len(labels)
    return position, tuple(zip(*reversed(parts))) if parts else ((),) * min(len(used), 1)


def _of_metric(table: pa.Table, values: str) -> pa.Table:
    """The measurements of one metric (all of them for a column), beside them the cells where it is missing."""
    if values in NUMBERS:
        return table
    tasks, metrics = table["task"], table["metric"]
    evaluated = pc.any(pc.and_(pc.is_valid(tasks), pc.is_valid(metrics))).as_py()
    known = [m for m in encode(metrics)[1] if m is not None]
    if values in known:
        return table.filter(pc.fill_null(pc.equal(metrics, values), False))
    if evaluated or not metrics.null_count:
        waiting = ", ".join(encode(table.filter(pc.is_null(metrics))["stage"])[1])
        hint = f"; not known yet: what these stages measure: {waiting}" if waiting else ""
        raise ValueError(unknown("metric", values, [*known, *NUMBERS, "state"]) + f" (--values){hint}")
    # nothing is evaluated yet: whatever is missing may bring this metric, stages that name tasks above all
    unknown_yet = table.filter(pc.is_null(metrics))
    with_task = unknown_yet.filter(pc.is_valid(unknown_yet["task"]))
    return with_task if with_task.num_rows else unknown_yet


def _one_each(table: pa.Table, place: np.ndarray, shown: Sequence[str], mean_over: Sequence[str], values: str) -> None:
    """Raise where two measurements that no `mean_over` joins fall into one place."""
    ignored = {*shown, *mean_over, *({"metric"} if values not in NUMBERS else ())}
    order = np.argsort(place, kind="stable")
    starts = np.flatnonzero(np.diff(place[order], prepend=-1))
    sizes = np.diff(starts, append=len(order))
    if not np.any(sizes > 1):
        return
    differ = {}
    for name in keys(table):
        codes, labels = encode(table[name])
        low, high = np.minimum.reduceat(codes[order], starts), np.maximum.reduceat(codes[order], starts)
        if name not in ignored and np.any(low != high):
            worst = np.argmax(low != high)
            seen = np.unique(codes[order][starts[worst] : starts[worst] + sizes[worst]])
            differ[name] = [show(labels[i]) for i in seen]
    if differ:
        raise ValueError(_remedy(differ, shown, values))
    if not mean_over:
        first = table.slice(int(order[starts[np.argmax(sizes)]]), 1).to_pylist()[0]
        raise ValueError(
            f"artifact {first['fingerprint']} of stage {first['stage']!r} holds {values!r} of one task twice"
        )


def _remedy(differ: Mapping[str, Sequence[str]], shown: Sequence[str], values: str) -> str:
    lists = "; ".join(f"{k} ({', '.join(v[:6])}{', ...' if len(v) > 6 else ''})" for k, v in differ.items())
    name, some = next(iter(differ.items()))
    return (
        f"several measurements of {values!r} would stand in one place: they differ in {lists}. Choose one "
        f"(--where {name}={some[0]}), show it (--rows {','.join([*shown[:1], name])}) or average (--mean-over {name})"
    )


def _numbers(table: pa.Table, place: np.ndarray, shape: tuple[int, int], column: str) -> dict[str, Any]:
    size = shape[0] * shape[1]
    array = pc.cast(table[column].combine_chunks(), pa.float64())
    valid = array.is_valid().to_numpy(zero_copy_only=False)
    numbers = array.to_numpy(zero_copy_only=False)
    count = np.bincount(place[valid], minlength=size)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(place[valid], numbers[valid], minlength=size) / count
        squares = np.bincount(place[valid], (numbers[valid] - mean[place[valid]]) ** 2, minlength=size)
        stderr = np.sqrt(squares / (count - 1) / count)
    single = np.full(size, np.nan)
    if column == "value":
        single[place[valid]] = table["stderr"].to_numpy()[valid]
    stderr = np.where(count > 1, stderr, np.where(count == 1, single, np.nan))
    low, high = mean_bounds(mean, stderr, count)
    if column == "value":
        alone = valid & (count[place] == 1)
        low[place[alone]], high[place[alone]] = bounds_of(table.filter(pa.array(alone)))
    total = np.bincount(place, minlength=size)
    mark = np.full(size, None, object)
    empty = np.flatnonzero((count[place] == 0) & ~valid)
    for where, text in sorted(set(zip(place[empty].tolist(), state_texts(table.take(pa.array(empty)))))):
        mark[where] = text if mark[where] is None else f"{mark[where]}, {text}"
    parts = {"value": mean, "stderr": stderr, "low": low, "high": high, "count": count, "cells": total, "mark": mark}
    return {name: part.reshape(shape) for name, part in parts.items()}


def bounds_of(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """The interval of each row of a long table; NaN where it has none."""
    codes, labels = encode(table["metric"])
    numbers = [table[name].cast(pa.float64()).combine_chunks().to_numpy(zero_copy_only=False) for name in NUMBERS]
    low, high = np.full(len(codes), np.nan), np.full(len(codes), np.nan)
    for code, metric in enumerate(labels):
        rows = codes == code
        found = intervals(metric or "", *(column[rows] for column in numbers))
        low[rows], high[rows] = found.low, found.high
    return low, high


def _states(table: pa.Table, place: np.ndarray, shape: tuple[int, int]) -> dict[str, Any]:
    """How many different cells of each state a place holds, as text."""
    three = table.select(["state", "fingerprint"]).append_column("place", pa.array(place))
    cells_of = three.group_by(["place", "state", "fingerprint"]).aggregate([]).group_by(["place", "state"])
    found: dict[int, list[tuple[str, int]]] = {}
    for row in cells_of.aggregate([("fingerprint", "count")]).to_pylist():
        found.setdefault(row["place"], []).append((row["state"], row["fingerprint_count"]))
    size = shape[0] * shape[1]
    mark, cells = np.full(size, None, object), np.zeros(size, np.int64)
    for where, states in found.items():
        cells[where] = sum(count for _, count in states)
        mark[where] = ", ".join(s if cells[where] == 1 else f"{s} {count}" for s, count in sorted(states))
    empty = np.full(size, np.nan)
    nothing = dict.fromkeys(("value", "stderr", "low", "high"), empty)
    parts = {**nothing, "count": np.zeros(size, np.int64), "cells": cells, "mark": mark}
    return {name: part.reshape(shape) for name, part in parts.items()}
