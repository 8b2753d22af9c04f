"""Charts drawn for print (matplotlib: PDF, PNG, SVG).

Lines differ in colour (of Okabe & Ito), dash and marker, so that a grey print and any eye can tell them apart; bars in
hatches too. What was not run is marked on the axis, not left out.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from toolkit.analysis.axis import Scale
from toolkit.analysis.charts import COLOURS, Chart, Point, Series

DASHES = ("-", "--", ":", "-.", (0, (5, 1)), (0, (3, 1, 1, 1)))
MARKERS = ("o", "s", "D", "^", "P", "v", "*", "p", "h")
WIDTH, HEIGHT = 2.4, 1.9  # inches of a panel: three of them fill the text width of a page
STYLE = {
    "font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6, "lines.linewidth": 1.2,
    "lines.markersize": 3.5, "pdf.fonttype": 42, "savefig.dpi": 300, "svg.hashsalt": "tidemark",
    "text.parse_math": False, "axes.unicode_minus": False,
}  # fmt: skip


def draw(chart: Chart, scale: str | None = None, columns: int = 3) -> Figure:
    """The figure of a chart. `scale`: one of the chart's, by default its first, log where coordinates allow it; `even`
    gives each the same room, as a categorical axis does.

    Raises:
        ValueError: a scale that the coordinates do not allow.
    """
    if chart.kind == "lines" and scale and scale not in chart.scales:
        raise ValueError(
            f"scale {scale!r} is not one that these coordinates of {chart.axis!r} allow: {', '.join(chart.scales)}"
        )
    kinds: dict[str, Callable[[], Figure]] = {
        "lines": lambda: _lines(chart, chart.scales[scale or next(iter(chart.scales))], columns),
        "bars": lambda: _bars(chart),
        "heat": lambda: _heat(chart),
        "scatter": lambda: _scatter(chart),
    }
    with matplotlib.rc_context(STYLE):
        return kinds[chart.kind]()


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


def _lines(chart: Chart, scale: Scale, columns: int) -> Figure:
    figure, grid = _grid(len(chart.panels), columns)
    styles = _styles([series for panel in chart.panels for series in panel.series])
    for i, (ax, panel) in enumerate(zip(grid, chart.panels)):
        for series in panel.series:
            _line(ax, [p for p in series.points if p.at >= 0], scale, styles[series.key])
        if panel.chance is not None:
            ax.axhline(panel.chance, color=COLOURS[-1], lw=0.8, ls=":", zorder=0)
        ax.set_title(panel.title, fontsize=8)
        ax.set_ylabel(chart.measure)
        _ticks(ax, scale, lowest=i + columns >= len(chart.panels))
    entries = {series.key: series.name for panel in chart.panels for series in panel.series}
    chance = any(panel.chance is not None for panel in chart.panels)
    _legend(figure, [(name, styles[key]) for key, name in entries.items()], chance)
    return figure


def _line(ax: Axes, points: Sequence[Point], scale: Scale, style: Any) -> None:
    x = np.array([scale.x[int(p.at)] for p in points])
    y, low, high = (np.array([getattr(p, name) for p in points], np.float64) for name in ("value", "low", "high"))
    ax.plot(x, y, **style)
    ax.fill_between(x, low, high, color=style["color"], alpha=0.16, lw=0)
    lonely = np.isfinite(low) & ~(np.isfinite(np.r_[np.nan, low[:-1]]) | np.isfinite(np.r_[low[1:], np.nan]))
    ax.errorbar(
        x[lonely], y[lonely], [(y - low)[lonely], (high - y)[lonely]], fmt="none", ecolor=style["color"], lw=0.8
    )
    if len(missing := x[np.isnan(y)]):  # on the axis, where no number can be
        marks = {"transform": ax.get_xaxis_transform(), "zorder": 3, "color": style["color"]}
        ax.plot(missing, np.full(len(missing), 0.03), ls="", marker="x", ms=4, **marks)


def _bars(chart: Chart) -> Figure:
    (panel,), labels = chart.panels, chart.scales["even"].labels
    width = min(2 * WIDTH, max(WIDTH, 0.4 * len(labels) * max(1, len(panel.series) / 2)))  # the text width at most
    figure, (ax,) = _grid(1, 1, width=width)
    room = 0.8 / len(panel.series)
    for i, series in enumerate(panel.series):
        at = np.array([p.at for p in series.points]) + (i - (len(panel.series) - 1) / 2) * room
        mean = np.array([p.value for p in series.points])
        ends = np.abs(np.array([[p.low for p in series.points], [p.high for p in series.points]]) - mean)
        look: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "hatch": ("", "///", "...", "xxx")[i % 4]}
        ax.bar(at, mean, room * 0.92, label=series.name or None, ec="white", lw=0, **look)
        ax.errorbar(at, mean, np.nan_to_num(ends), fmt="none", ecolor="black", lw=0.7, capsize=1.5)
    ax.axhline(0, color="black", lw=0.6)
    ax.set_xticks(range(len(labels)), labels, rotation=30, ha="right")
    ax.set_xlabel(chart.axis)
    ax.set_ylabel(chart.measure)
    ax.set_title(panel.title, fontsize=8)
    if len(panel.series) > 1:
        figure.legend(loc="outside lower center", ncols=min(4, len(panel.series)), frameon=False, fontsize=7)
    return figure


def _heat(chart: Chart) -> Figure:
    """Scores run from pale to dark, changes from one colour through white at 0 to another; a place without a number
    says so."""
    (panel,), labels = chart.panels, chart.scales["even"].labels
    numbers = np.full((len(panel.series), len(labels)), np.nan)
    for i, series in enumerate(panel.series):
        for point in series.points:
            numbers[i, int(point.at)] = point.value
    bound = float(np.nanmax(np.abs(numbers))) if np.isfinite(numbers).any() else 1.0
    figure, (ax,) = _grid(1, 1, width=0.33 * numbers.shape[1] + 0.7, height=0.2 * numbers.shape[0] + 0.7)
    ax.set_facecolor("0.93")
    limits = (-bound, bound) if chart.change else (0, max(1.0, bound))
    ax.imshow(numbers, cmap="PuOr" if chart.change else "Blues", vmin=limits[0], vmax=limits[1], aspect="auto")
    for (i, j), number in np.ndenumerate(numbers):
        dark = np.isfinite(number) and abs(number) > 0.6 * limits[1]
        text = f"{round(number, 2) + 0.0:.2f}" if np.isfinite(number) else "not run"
        ax.text(j, i, text, ha="center", va="center", fontsize=6, color="white" if dark else "black")
    ax.set_xticks(range(len(labels)), labels, rotation=40, ha="right")
    ax.set_yticks(range(len(panel.series)), [series.name for series in panel.series])
    ax.set_title(panel.title, fontsize=8)
    return figure


def _scatter(chart: Chart) -> Figure:
    (panel,) = chart.panels
    figure, (ax,) = _grid(1, 1, width=WIDTH)
    styles = _styles(panel.series)
    for series in panel.series:
        look = {"c": styles[series.key]["color"], "marker": styles[series.key]["marker"]}
        x, y = [p.at for p in series.points], [p.value for p in series.points]
        ax.scatter(x, y, s=14, lw=0, label=series.name or None, **look)
    ax.set_xlabel(chart.axis)
    ax.set_ylabel(chart.measure)
    ax.set_title(panel.title, fontsize=8)
    if len(panel.series) > 1:
        ax.legend(frameon=False, fontsize=7)
    return figure


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


def _styles(series: Sequence[Series]) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Colour by the first coordinate of a key, dash and marker by the others; with one coordinate all three differ."""
    keys = list(dict.fromkeys(one.key for one in series))
    firsts, rests = list(dict.fromkeys(k[:1] for k in keys)), list(dict.fromkeys(k[1:] for k in keys))
    found = {}
    for i, key in enumerate(keys):
        colour, other = firsts.index(key[:1]), rests.index(key[1:]) if len(rests) > 1 else i
        found[key] = {
            "color": COLOURS[colour % len(COLOURS)], "ls": DASHES[other % len(DASHES)],
            "marker": MARKERS[other % len(MARKERS)],
        }  # fmt: skip
    return found


def _ticks(ax: Axes, scale: Scale, lowest: bool) -> None:
    """Words stand below the lowest panel of a column alone."""
    ax.set_xticks(scale.ticks, scale.labels if lowest else [""] * len(scale.ticks), rotation=35, ha="right", fontsize=7)
    ax.set_xlabel(scale.title if lowest else "")


def _legend(figure: Figure, entries: Sequence[tuple[str, Mapping[str, Any]]], chance: bool) -> None:
    handles = [Line2D([], [], label=name, **style) for name, style in entries if name]
    if chance:
        handles.append(Line2D([], [], label="chance", color=COLOURS[-1], ls=":", lw=0.8))
    if len(handles) > 1:
        figure.legend(
            handles=handles, loc="outside lower center", ncols=min(4, len(handles)), frameon=False, fontsize=7
        )  # fmt: skip
