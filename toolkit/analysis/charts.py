"""Figures as plain data: which panels, lines and points a frame shows. `plots` draws them for print, the page of the
report in a browser, so that both show the same numbers.

`curves`: scores over checkpoints. `bars`: means with intervals. `heat`: checkpoint by task. `scatter`: what a cheap
signal says of what is reached. A number stands with its interval, and what was not run is there without one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from toolkit.analysis.axis import Scale, categories, compact_all, scales
from toolkit.analysis.formats import number
from toolkit.analysis.gaps import NUMBERS, show
from toolkit.analysis.payload import spelled
from toolkit.analysis.stats import PROPORTIONS, intervals, mean_interval, plain, z_score
from toolkit.analysis.trends import rank_correlation
from toolkit.lookup import unknown

# Okabe & Ito, "Color Universal Design" (2008); yellow is left out (too faint on white), black is grey (for both themes)
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
Kind = Literal["lines", "bars", "heat", "scatter"]


@dataclass(frozen=True, kw_only=True)
class Point:
    """A number and its interval, NaN where unknown. `at` counts the coordinates of the axis; of a scatter it is the
    signal itself, and of a cell that has no coordinate on this axis (a reference line) it is -1. `state` says why
    there is no number, `said` what there is to tell beside it."""

    at: float
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    state: str | None = None
    said: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Series:
    """A line, a set of bars, or a row of a heat map. Lines whose keys begin alike have one colour."""

    key: tuple[Any, ...]
    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes. `chance`: the score of guessing, where it means something."""

    title: str
    series: tuple[Series, ...]
    chance: float | None = None


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Panels over one axis. `scales`: where its coordinates stand (of a heat map: the columns); `change`: numbers are
    differences, with a meaning of their sign."""

    kind: Kind
    axis: str
    panels: tuple[Panel, ...]
    measure: str = ""
    scales: Mapping[str, Scale] = field(default_factory=dict)
    change: bool = False


def curves(
    frame: pd.DataFrame,
    over: str = "tokens",
    lines: Sequence[str] = ("train",),
    panels: Sequence[str] = ("task", "metric"),
    value: str = "value",
    chance: Mapping[str, float] | None = None,
    confidence: float = 0.95,
) -> Chart:
    """A panel for each combination of `panels`, a line for each of `lines`, over checkpoints.

    Args:
        over: the axis of checkpoints.
        value: `value` with the intervals of `stats.intervals`, or `gain` with gain ± z * gain_stderr. Several rows at
            one point that differ in `seed` alone are their mean with Student's t interval.
        chance: task -> the score of guessing.

    Raises:
        ValueError: an unknown column, no row with a coordinate of `over`, or several rows at one point (which columns
            differ).
    """
    check_columns(frame, [over, value, *lines, *panels])
    rows = _placed(frame, over).sort_values(over, kind="stable")
    coordinates = sorted(rows[over].unique().tolist())
    places = {coordinate: i for i, coordinate in enumerate(coordinates)}
    found = []
    for key, part in _groups(rows, panels):
        series = [
            _series(lines, line, _points(some, over, places, value, confidence)) for line, some in _groups(part, lines)
        ]
        found.append(
            Panel(title=" · ".join(map(show, key)), series=tuple(series), chance=_chance(part, value, chance or {}))
        )
    return Chart(
        kind="lines", axis=over, panels=tuple(found), scales=scales(coordinates, over), change=value != "value",
        measure="" if value == "value" else value,
    )  # fmt: skip


def bars(
    averages: pd.DataFrame, x: str, group: str | None = None, title: str = "", measure: str = "mean"
) -> Chart:  # fmt: skip
    """Bars of `mean` with `low` and `high` (of `dynamics.average`) at each `x`, side by side for each `group`.

    measure: what it is a mean of, for the axis.

    Raises:
        ValueError: an unknown column.
    """
    check_columns(averages, [x, "mean", "low", "high", *([group] if group else [])])
    labels = list(dict.fromkeys(averages[x]))
    names = [group] if group else []
    sets = []
    for key, part in _groups(averages, names):
        rows = part[[x, "mean", "low", "high"]].itertuples(index=False, name=None)
        points = [
            _told(Point(at=labels.index(at), value=mean, low=low, high=high), f"{x} {show(at)}")
            for at, mean, low, high in rows
        ]
        sets.append(_series(names, key, points))
    return Chart(
        kind="bars",
        axis=x,
        panels=(Panel(title=title, series=tuple(sets)),),
        measure=measure,
        scales=categories(labels, x),
    )


def heat(frame: pd.DataFrame, rows: str = "step", cols: str = "task", value: str = "value") -> Chart:
    """A map of `value`: one row for each checkpoint, one column for each task. A place without a row stays empty.

    Raises:
        ValueError: an unknown column, or several rows in one place (which columns differ).
    """
    check_columns(frame, [rows, cols, value])
    frame = _placed(frame, rows)
    _refuse_several(frame, [rows, cols])
    labels = list(dict.fromkeys(frame[cols]))
    series: list[Series] = []
    names = compact_all(sorted(set(frame[rows].dropna())))
    for key, part in _groups(frame.sort_values(rows, kind="stable"), [rows]):
        numbers = part[[cols, value]].itertuples(index=False, name=None)
        heads = (f"{rows} {show(key[0])}",)
        points = [_told(Point(at=labels.index(at), value=_float(v)), *heads, f"{cols} {show(at)}") for at, v in numbers]
        series.append(Series(key=key, name=names[len(series)], points=tuple(points)))
    return Chart(
        kind="heat", axis=cols, measure=value, panels=(_one(f"{value}: {rows} by {cols}", series),),
        scales=categories(labels, cols), change=value != "value",
    )  # fmt: skip


def scatter(
    frame: pd.DataFrame, signal: str, reached: str, lines: Sequence[str] = (), confidence: float = 0.95
) -> Chart:
    """Pairs of a cheap signal and what is reached, with Spearman's rho over all of them and its interval in the title,
    and of each line by itself behind its name.

    Raises:
        ValueError: an unknown column, or too few pairs for a correlation.
    """
    check_columns(frame, [signal, reached, *lines])
    pairs = frame.dropna(subset=[signal, reached])
    found = rank_correlation(pairs[signal], pairs[reached], confidence=confidence)
    title = f"rho {found.value:.2f} [{found.low:.2f}, {found.high:.2f}], n = {found.n}"
    place = next((name for name in ("step", "tokens") if name in frame and name not in lines), None)
    series = []
    for key, part in _groups(pairs, lines):
        heads = [(f"{place} {show(at)}",) if place else () for at in (part[place] if place else part.index)]
        points = [
            Point(at=float(x), value=float(y), said=(f"{number(y)} at {number(x)}", *head))
            for x, y, head in zip(part[signal], part[reached], heads)
        ]
        one = _series(lines, key, points)
        series.append(replace(one, name=f"{one.name}{_rho(part[signal], part[reached])}") if lines else one)
    return Chart(kind="scatter", axis=signal, measure=reached, panels=(Panel(title=title, series=tuple(series)),))


def _one(title: str, series: Sequence[Series]) -> Panel:
    return Panel(title=title, series=tuple(series))


def _rho(signal: "pd.Series[float]", reached: "pd.Series[float]") -> str:
    """Of one line of a scatter: lines that differ in level have another correlation together than each by itself."""
    if len(signal) < 4 or min(signal.nunique(), reached.nunique()) < 2:
        return ""
    found = rank_correlation(signal, reached)
    return f": rho {found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def to_json(chart: Chart) -> dict[str, Any]:
    """Plain data for the page; what is not a number is None."""
    return _plain(chart)


def _plain(thing: Any) -> Any:
    if hasattr(thing, "__dataclass_fields__"):
        return {name: _plain(getattr(thing, name)) for name in thing.__dataclass_fields__}
    if isinstance(thing, Mapping):
        return {spelled(str(k)): _plain(v) for k, v in thing.items()}
    if isinstance(thing, (list, tuple)):
        return [_plain(v) for v in thing]
    if isinstance(thing, (float, np.floating)):
        return float(thing) if math.isfinite(thing) else None
    return (
        int(thing)
        if isinstance(thing, np.integer)
        else thing if thing is None or isinstance(thing, (int, bool)) else spelled(str(thing))
    )


def _placed(frame: pd.DataFrame, over: str) -> pd.DataFrame:
    rows = frame.dropna(subset=[over])
    if rows.empty:
        raise ValueError(f"no row that was chosen has a coordinate of {over!r}: there is nothing to draw")
    return rows


def check_columns(frame: pd.DataFrame, names: Sequence[str]) -> None:
    """Raise ValueError where a frame lacks one of these columns."""
    for name in names:
        if name not in frame:
            raise ValueError(unknown("column", name, map(str, frame.columns)))


def _groups(frame: pd.DataFrame, names: Sequence[str]) -> list[tuple[tuple[Any, ...], pd.DataFrame]]:
    """The rows of each combination of labels, in the order in which they come."""
    if not names:
        return [((), frame)]
    found = frame.groupby(list(names), sort=False, dropna=False)
    return [(tuple(None if k is pd.NA or k != k else k for k in key), part) for key, part in found]  # NaN is not itself


def _series(names: Sequence[str], key: tuple[Any, ...], points: Sequence[Point]) -> Series:
    name = " · ".join(show(v) if isinstance(v, str) else f"{n} {show(v)}" for n, v in zip(names, key))
    return Series(
        key=key, name=name, points=tuple(_told(p, *([name] if name else [])) if p.at >= 0 else p for p in points)
    )


def _told(point: Point, *heads: str) -> Point:
    """With the number and its interval in words, and what it belongs to below."""
    said = point.said or (point.state or "not run",)
    if not point.said and not math.isnan(point.value):
        bounds = "" if math.isnan(point.low) else f" [{number(point.low)}, {number(point.high)}]"
        said = (f"{number(point.value)}{bounds}",)
    return replace(point, said=(*said, *heads))


def _points(rows: pd.DataFrame, over: str, places: Mapping[Any, int], value: str, confidence: float) -> list[Point]:
    """In the order of the axis; without a number where nothing was run."""
    _refuse_several(rows, [over, *(["seed"] if "seed" in rows else [])])
    found = []
    for place, part in rows.groupby(over, sort=True):
        numbers = part[value].dropna()
        if len(numbers) > 1:
            mean, low, high = mean_interval(numbers, confidence)
            point = Point(at=places[place], value=mean, low=low, high=high)
        elif numbers.empty:
            point = Point(at=places[place], state=_state(part.iloc[0]))
        else:
            low, high = _bounds(part.loc[numbers.index[0]], value, confidence)
            point = Point(at=places[place], value=float(numbers.iloc[0]), low=low, high=high)
        found.append(_told(point, f"{over} {show(place)}"))
    return found


def _state(row: pd.Series) -> str:
    """Why there is no number: the state of the cell, or that a done one has none (published tables lack some)."""
    state, reason = row.get("state", "done"), row.get("reason")
    return "no value" if state == "done" else f"{state}: {reason}" if isinstance(reason, str) and reason else str(state)


def _bounds(row: pd.Series, value: str, confidence: float) -> tuple[float, float]:
    if value != "value":
        half = z_score(confidence) * _float(row.get(f"{value}_stderr", np.nan))
        return float(row[value]) - half, float(row[value]) + half
    number, error, n = ([_float(row[name])] for name in NUMBERS)
    found = intervals(str(row["metric"]), number, error, n, confidence)
    return float(found.low[0]), float(found.high[0])


def _float(value: Any) -> float:
    return math.nan if pd.isna(value) else float(value)


def _chance(part: pd.DataFrame, value: str, chance: Mapping[str, float]) -> float | None:
    """The level of guessing, where the panel shows right and wrong answers of one task."""
    tasks, metrics = part["task"].unique(), part["metric"].unique()
    shares = all(plain(str(m)) in PROPORTIONS for m in metrics)
    return chance.get(tasks[0]) if len(tasks) == 1 and value == "value" and shares else None


def _refuse_several(rows: pd.DataFrame, place: Sequence[str]) -> None:
    """Raise where several rows stand in one place: a line through all of them would show what nobody measured."""
    several = rows[rows.duplicated(list(place), keep=False)]
    if several.empty:
        return
    at = several.iloc[0]
    first = several[(several[list(place)] == at[list(place)]).all(axis=1)]
    ignored = {*place, *NUMBERS, "fingerprint", "base", "base_stderr", "gain", "gain_stderr", "relative"}
    differ = [str(c) for c in first if c not in ignored and first[c].nunique(dropna=False) > 1]
    raise ValueError(
        f"several rows at {', '.join(f'{name} {show(at[name])}' for name in place)}: they differ in "
        f"{', '.join(differ) or 'nothing'}; choose one, or give it lines or panels of its own"
    )
