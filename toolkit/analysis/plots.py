"""Figures for print (matplotlib: PDF, PNG) from frames of `toolkit.analysis.load` and `dynamics`.

`curves`: scores over checkpoints. `bars`: means with intervals. `heat`: checkpoint by task. `scatter`: what a cheap
signal says of what tuning reaches. Lines differ in colour (of Okabe & Ito), dash and marker, so that a grey print and
any eye can tell them apart; a number stands with its interval, and what was not run is marked, not left out.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from toolkit.analysis.axis import Scale, compact_all, scales
from toolkit.analysis.drawing import COLOURS
from toolkit.analysis.gaps import NUMBERS, show
from toolkit.analysis.stats import PROPORTIONS, intervals, mean_interval, z_score
from toolkit.analysis.trends import rank_correlation
from toolkit.lookup import unknown

DASHES = ("-", "--", ":", "-.", (0, (5, 1)), (0, (3, 1, 1, 1)))
MARKERS = ("o", "s", "D", "^", "P", "v", "*", "p", "h")
WIDTH, HEIGHT = 2.4, 1.9  # inches of a panel: three of them fill the text width of a page
STYLE = {
    "font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6, "lines.linewidth": 1.2,
    "lines.markersize": 3.5, "pdf.fonttype": 42, "savefig.dpi": 300, "svg.hashsalt": "tidemark",
}  # fmt: skip


def curves(
    frame: pd.DataFrame,
    over: str = "tokens",
    lines: Sequence[str] = ("train",),
    panels: Sequence[str] = ("task", "metric"),
    scale: Literal["log", "linear", "even"] | None = None,
    value: str = "value",
    chance: Mapping[str, float] | None = None,
    confidence: float = 0.95,
    columns: int = 3,
) -> Figure:
    """A panel for each combination of `panels`, a line for each of `lines`, over checkpoints.

    Args:
        over: the axis of checkpoints; `scale` is one of `axis.scales`, by default the first that the coordinates
            allow, log; `even` gives each the same room, as a categorical axis does.
        value: `value` with the intervals of `stats.intervals`, or `gain` with gain ± z * gain_stderr. Several rows at
            one point that differ in `seed` alone are drawn as their mean with Student's t interval.
        chance: task -> the score of guessing, drawn as a dotted line.

    Raises:
        ValueError: an unknown column or scale, or several rows at one point (which columns differ).
    """
    for name in (over, value, *lines, *panels):
        if name not in frame:
            raise ValueError(unknown("column", name, map(str, frame.columns)))
    rows = frame.dropna(subset=[over]).sort_values(over, kind="stable")
    coordinates = sorted(rows[over].unique().tolist())
    known = scales(coordinates, over)
    chosen: str = scale or list(known)[0]
    if chosen not in known:
        raise ValueError(f"scale {scale!r} is not one that these coordinates of {over!r} allow: {', '.join(known)}")
    places = dict(zip(coordinates, known[chosen].x))
    groups = _groups(rows, panels)
    styles = _styles([key for key, _ in _groups(rows, lines)])
    with matplotlib.rc_context(STYLE):
        figure, grid = _grid(len(groups), columns)
        for i, (ax, (key, part)) in enumerate(zip(grid, groups)):
            for line, points in _groups(part, lines):
                _line(ax, _points(points, over, value, confidence), places, styles[line])
            _chance(ax, part, value, chance or {})
            ax.set_title(" · ".join(map(show, key)), fontsize=8)
            _ticks(ax, known[chosen], lowest=i + columns >= len(groups))
        _legend(figure, [(_name(lines, key), style) for key, style in styles.items()])
    return figure


def bars(averages: pd.DataFrame, x: str, group: str | None = None, title: str = "") -> Figure:
    """Bars of `mean` with `low` and `high` (of `dynamics.average`) at each `x`, side by side for each `group`.

    Raises:
        ValueError: an unknown column.
    """
    for column in (x, "mean", "low", "high", *([group] if group else [])):
        if column not in averages:
            raise ValueError(unknown("column", column, map(str, averages.columns)))
    labels = list(dict.fromkeys(averages[x]))
    sets = _groups(averages, [group] if group else [])
    with matplotlib.rc_context(STYLE):
        figure, (ax,) = _grid(1, 1, width=max(WIDTH, 0.4 * len(labels) * max(1, len(sets) / 2)))
        room = 0.8 / len(sets)
        for i, (key, part) in enumerate(sets):
            at = np.array([labels.index(label) for label in part[x]]) + (i - (len(sets) - 1) / 2) * room
            ends = np.abs(part[["low", "high"]].to_numpy().T - part["mean"].to_numpy())
            name = " · ".join(map(show, key)) or None
            hatch = ("", "///", "...", "xxx")[i % 4]
            ax.bar(
                at,
                part["mean"],
                room * 0.92,
                label=name,
                color=COLOURS[i % len(COLOURS)],
                hatch=hatch,
                ec="white",
                lw=0,
            )
            ax.errorbar(at, part["mean"], np.nan_to_num(ends), fmt="none", ecolor="black", lw=0.7, capsize=1.5)
        ax.axhline(0, color="black", lw=0.6)
        ax.set_xticks(range(len(labels)), compact_all(labels), rotation=30, ha="right")
        ax.set_xlabel(x)
        ax.set_ylabel("mean")
        ax.set_title(title, fontsize=8)
        if group:
            ax.legend(frameon=False, fontsize=7)
    return figure


def heat(frame: pd.DataFrame, rows: str = "step", cols: str = "task", value: str = "value") -> Figure:
    """A map of `value`: one row for each checkpoint, one column for each task; its number in every cell.

    Scores run from pale to dark, changes (gain, relative) from one colour through white at 0 to another; a place
    without a number is hatched.

    Raises:
        ValueError: an unknown column, or several rows in one place (which columns differ).
    """
    for name in (rows, cols, value):
        if name not in frame:
            raise ValueError(unknown("column", name, map(str, frame.columns)))
    _refuse_several(frame, [rows, cols])
    wide = frame.pivot(index=rows, columns=cols, values=value)[list(dict.fromkeys(frame[cols]))]
    numbers = wide.to_numpy(np.float64)
    bound = float(np.nanmax(np.abs(numbers))) if np.isfinite(numbers).any() else 1.0
    change = value != "value"
    with matplotlib.rc_context(STYLE):
        figure, (ax,) = _grid(1, 1, width=0.33 * numbers.shape[1] + 0.7, height=0.2 * numbers.shape[0] + 0.7)
        ax.set_facecolor("0.93")
        limits = (-bound, bound) if change else (0, max(1.0, bound))
        ax.imshow(numbers, cmap="PuOr" if change else "Blues", vmin=limits[0], vmax=limits[1], aspect="auto")
        for (i, j), number in np.ndenumerate(numbers):
            dark = np.isfinite(number) and abs(number) > 0.6 * limits[1]
            text = f"{round(number, 2) + 0.0:.2f}" if np.isfinite(number) else "not run"
            ax.text(j, i, text, ha="center", va="center", fontsize=6, color="white" if dark else "black")
        ax.set_xticks(range(len(wide.columns)), map(show, wide.columns), rotation=40, ha="right")
        ax.set_yticks(range(len(wide.index)), compact_all(wide.index.tolist()))
        ax.set_ylabel(rows)
        ax.set_title(value, fontsize=8)
    return figure


def scatter(
    frame: pd.DataFrame, signal: str, reached: str, lines: Sequence[str] = (), confidence: float = 0.95
) -> Figure:
    """Pairs of a cheap signal and what tuning reaches, with Spearman's rho over all of them and its interval.

    Raises:
        ValueError: an unknown column, or too few pairs for a correlation.
    """
    for name in (signal, reached, *lines):
        if name not in frame:
            raise ValueError(unknown("column", name, map(str, frame.columns)))
    pairs = frame.dropna(subset=[signal, reached])
    found = rank_correlation(pairs[signal], pairs[reached], confidence=confidence)
    groups = _groups(pairs, lines)
    styles = _styles([key for key, _ in groups])
    with matplotlib.rc_context(STYLE):
        figure, (ax,) = _grid(1, 1, width=WIDTH)
        for key, part in groups:
            style = {"c": styles[key]["color"], "marker": styles[key]["marker"]}
            ax.scatter(part[signal], part[reached], s=14, lw=0, label=_name(lines, key), **style)
        ax.set_xlabel(signal)
        ax.set_ylabel(reached)
        ax.set_title(f"rho {found.value:.2f} [{found.low:.2f}, {found.high:.2f}], n = {found.n}", fontsize=8)
        if lines:
            ax.legend(frameon=False, fontsize=7)
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as its suffix says (.pdf, .png, .svg); equal figures give equal bytes.

    Raises:
        ValueError: another suffix.
    """
    known = {".pdf": {"CreationDate": None}, ".png": {"Software": None}, ".svg": {"Date": None}}
    if path.suffix not in known:
        raise ValueError(f"{path} must end in {', '.join(known)}: a figure is written as its name says")
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        figure.savefig(path, bbox_inches="tight", metadata=known[path.suffix])
    return path


def _groups(frame: pd.DataFrame, names: Sequence[str]) -> list[tuple[tuple[Any, ...], pd.DataFrame]]:
    """The rows of each combination of labels, in the order in which they come."""
    if not names:
        return [((), frame)]
    found = frame.groupby(list(names), sort=False, dropna=False)
    return [(tuple(None if k is pd.NA or k != k else k for k in key), part) for key, part in found]  # NaN is not itself


def _grid(count: int, columns: int, width: float = WIDTH, height: float = HEIGHT) -> tuple[Figure, list[Axes]]:
    across = max(1, min(columns, count))
    down = -(-count // across)
    size = (1.5 * width, 1.3 * height) if count == 1 else (width * across, height * down)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    grid = list(figure.subplots(down, across, squeeze=False).flat)
    for empty in grid[count:]:
        empty.axis("off")
    return figure, grid


def _styles(keys: Sequence[tuple[Any, ...]]) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Colour by the first coordinate of a key, dash and marker by the others; with one coordinate all three differ."""
    firsts, rests = list(dict.fromkeys(k[:1] for k in keys)), list(dict.fromkeys(k[1:] for k in keys))
    found = {}
    for i, key in enumerate(keys):
        colour, other = firsts.index(key[:1]), rests.index(key[1:]) if len(rests) > 1 else i
        found[key] = {
            "color": COLOURS[colour % len(COLOURS)], "ls": DASHES[other % len(DASHES)],
            "marker": MARKERS[other % len(MARKERS)],
        }  # fmt: skip
    return found


def _points(rows: pd.DataFrame, over: str, value: str, confidence: float) -> list[tuple[Any, float, float, float]]:
    """(coordinate, number, low, high) in the order of the axis; NaN where nothing was run."""
    _refuse_several(rows, [over, *(["seed"] if "seed" in rows else [])])
    found = []
    for place, part in rows.groupby(over, sort=True):
        numbers = part[value].dropna()
        if len(numbers) > 1:
            found.append((place, *mean_interval(numbers, confidence)))
        elif numbers.empty:
            found.append((place, np.nan, np.nan, np.nan))
        else:
            found.append((place, float(numbers.iloc[0]), *_bounds(part.loc[numbers.index[0]], value, confidence)))
    return found


def _bounds(row: pd.Series, value: str, confidence: float) -> tuple[float, float]:
    if value != "value":
        half = z_score(confidence) * float(row.get(f"{value}_stderr", np.nan))
        return float(row[value]) - half, float(row[value]) + half
    number, error, n = ([np.nan if pd.isna(row[name]) else float(row[name])] for name in NUMBERS)
    found = intervals(str(row["metric"]), number, error, n, confidence)
    return float(found.low[0]), float(found.high[0])


def _line(ax: Axes, points: Sequence[tuple[Any, float, float, float]], places: Mapping[Any, float], style: Any) -> None:
    x = np.array([places[place] for place, *_ in points])
    y, low, high = (np.array(column, np.float64) for column in list(zip(*points))[1:])
    ax.plot(x, y, **style)
    ax.fill_between(x, low, high, color=style["color"], alpha=0.16, lw=0)
    lonely = np.isfinite(low) & ~(np.isfinite(np.r_[np.nan, low[:-1]]) | np.isfinite(np.r_[low[1:], np.nan]))
    ax.errorbar(
        x[lonely], y[lonely], [(y - low)[lonely], (high - y)[lonely]], fmt="none", ecolor=style["color"], lw=0.8
    )
    if len(missing := x[np.isnan(y)]):  # on the axis, where no number can be
        marks = {"transform": ax.get_xaxis_transform(), "zorder": 3, "color": style["color"]}
        ax.plot(missing, np.full(len(missing), 0.03), ls="", marker="x", ms=4, **marks)


def _chance(ax: Axes, part: pd.DataFrame, value: str, chance: Mapping[str, float]) -> None:
    """The level of guessing, where the panel shows right and wrong answers of one task."""
    tasks, metrics = part["task"].unique(), part["metric"].unique()
    if len(tasks) == 1 and value == "value" and tasks[0] in chance and all(m in PROPORTIONS for m in metrics):
        ax.axhline(chance[tasks[0]], color=COLOURS[-1], lw=0.8, ls=":", zorder=0)


def _ticks(ax: Axes, scale: Scale, lowest: bool) -> None:
    """Words stand below the lowest panel of a column alone."""
    ax.set_xticks(scale.ticks, scale.labels if lowest else [""] * len(scale.ticks), rotation=35, ha="right", fontsize=7)
    ax.set_xlabel(scale.title if lowest else "")


def _name(names: Sequence[str], key: Sequence[Any]) -> str:
    return " · ".join(show(v) if isinstance(v, str) else f"{n} {show(v)}" for n, v in zip(names, key))


def _legend(figure: Figure, entries: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    handles = [Line2D([], [], label=name, **style) for name, style in entries]
    if len(handles) > 1:
        figure.legend(
            handles=handles, loc="outside lower center", ncols=min(4, len(handles)), frameon=False, fontsize=7
        )  # fmt: skip


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
