"""How a panel looks: lines with bands, a strip for what is missing, and styles that need no colour vision.

Points of a line come with the number of their coordinate on the axis; the figure stores where these coordinates stand
on each scale in `layout.meta`, so that a page can switch scales without the data.
"""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import plotly.graph_objects as go

from toolkit.analysis.axis import scales

# Okabe & Ito, "Color Universal Design" (2008); yellow is left out (too faint on white), black is grey (for both themes)
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
MARKERS = ("circle", "square", "diamond", "triangle-up", "cross", "triangle-down", "star", "pentagon", "hexagon")
STATES = {
    "never-run": "circle-open",
    "running": "triangle-right-open",
    "failed": "x",
    "blocked": "square-open",
    "no value": "asterisk-open",
}
HEIGHT, FRAME = 330, 130  # pixels of a panel without missing cells, and what axis title, legend and margins take of it


@dataclass(frozen=True, kw_only=True)
class Point:
    """A place of a line: coordinate number `at`, the number and its interval (NaN where unknown) and what to say
    about it.

    A missing cell has a `state` and no number. `at` is -1 where the cell has no coordinate on this axis (a reference).
    """

    at: int
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    state: str | None = None
    text: str = ""


def panel(
    lines: Mapping[tuple[Any, ...], Sequence[Point]], names: Sequence[str], coordinates: Sequence[Any], axis: str
) -> go.Figure:
    """A figure of lines (key -> points in the order of the axis) with their names, over the coordinates of `axis`."""
    figure = go.Figure(layout={"template": go.layout.Template(), "colorway": COLOURS})
    styles = _styles(list(lines))
    for points, name, style in zip(lines.values(), names, styles):
        _line(figure, html.escape(name, quote=False), points, style, len(coordinates))
    missing = _strip(figure, list(lines.values()), styles)
    _layout(figure, coordinates, axis, missing)
    return figure


def _styles(keys: Sequence[tuple[Any, ...]]) -> list[dict[str, str]]:
    """Colour by the first coordinate of a key, dash and marker by the others; with one coordinate all three differ."""
    firsts = list(dict.fromkeys(key[:1] for key in keys))
    rests = list(dict.fromkeys(key[1:] for key in keys))
    styles = []
    for i, key in enumerate(keys):
        colour = firsts.index(key[:1])
        other = rests.index(key[1:]) + colour // len(COLOURS) if len(rests) > 1 else i
        styles.append(
            {
                "colour": COLOURS[colour % len(COLOURS)],
                "dash": DASHES[other % len(DASHES)],
                "marker": MARKERS[other % len(MARKERS)],
            }
        )
    return styles


def _line(figure: go.Figure, name: str, points: Sequence[Point], style: Mapping[str, str], width: int) -> None:
    reference = [p for p in points if p.at < 0 and not math.isnan(p.value)]
    on_axis = [p for p in points if p.at >= 0]
    group = {"legendgroup": name, "name": name}
    if on_axis:
        _band(figure, on_axis, style["colour"], group)
        figure.add_trace(_curve(on_axis, style, group))
    for point in reference:
        ends = [point, point]
        line = {"color": style["colour"], "width": 1.5, "dash": "dot"}
        trace = go.Scatter(y=[p.value for p in ends], text=[p.text for p in ends], mode="lines", line=line, **group)
        figure.add_trace(
            trace.update(meta=[0, width - 1], hovertemplate="%{text}<extra></extra>", showlegend=not on_axis)
        )


def _curve(points: Sequence[Point], style: Mapping[str, str], group: Mapping[str, str]) -> go.Scatter:
    """The line; a missing cell between two points breaks it."""
    alone = _alone(points)
    bars = [p.high - p.value if i in alone else None for i, p in enumerate(points)]
    down = [p.value - p.low if i in alone else None for i, p in enumerate(points)]
    many = len(points) > 60
    return go.Scatter(
        y=[None if math.isnan(p.value) else p.value for p in points],
        text=[p.text for p in points],
        meta=[p.at for p in points],
        mode="lines" if many else "lines+markers",
        line={"color": style["colour"], "width": 2, "dash": style["dash"]},
        marker={"symbol": style["marker"], "size": 7},
        error_y={"type": "data", "array": bars, "arrayminus": down, "symmetric": False, "width": 0} if alone else None,
        hovertemplate="%{text}<extra></extra>",
        **group,
    )


def _runs(points: Sequence[Point]) -> list[list[int]]:
    """Positions of neighbouring points that have an interval."""
    runs: list[list[int]] = [[]]
    for i, point in enumerate(points):
        if math.isnan(point.low) or math.isnan(point.high):
            runs.append([])
        else:
            runs[-1].append(i)
    return [run for run in runs if run]


def _alone(points: Sequence[Point]) -> set[int]:
    """Points whose band would have no width: they get a bar."""
    return {run[0] for run in _runs(points) if len(run) == 1}


def _band(figure: go.Figure, points: Sequence[Point], colour: str, group: Mapping[str, str]) -> None:
    at: list[int | None] = []
    y: list[float | None] = []
    for run in _runs(points):
        if len(run) > 1:
            outline = [(points[i].at, points[i].high) for i in run] + [
                (points[i].at, points[i].low) for i in reversed(run)
            ]
            at += [place for place, _ in outline] + [None]
            y += [bound for _, bound in outline] + [None]
    if at:
        red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
        fill = {
            "fill": "toself",
            "fillcolor": f"rgba({red},{green},{blue},0.16)",
            "line": {"width": 0},
            "mode": "lines",
        }
        figure.add_trace(go.Scatter(y=y, meta=at, hoverinfo="skip", showlegend=False, **fill, **group))


def _strip(figure: go.Figure, lines: Sequence[Sequence[Point]], styles: Sequence[Mapping[str, str]]) -> int:
    """Marks for cells without a number, a row for each line that misses any, in its colour; returns how many rows."""
    rows = [(points, style) for points, style in zip(lines, styles) if any(p.state and p.at >= 0 for p in points)]
    found: dict[str, list[tuple[Point, int, str]]] = {}
    for row, (points, style) in enumerate(rows):
        for point in points:
            if point.state and point.at >= 0:
                found.setdefault(point.state.split(":")[0], []).append((point, -row, style["colour"]))
    for word in sorted(found, key=list(STATES).index):
        marks = {"symbol": STATES[word], "size": 8, "color": [colour for _, _, colour in found[word]]}
        texts, heights = [p.text for p, _, _ in found[word]], [y for _, y, _ in found[word]]
        trace = go.Scatter(y=heights, text=texts, meta=[p.at for p, _, _ in found[word]], yaxis="y2", marker=marks)
        figure.add_trace(trace.update(mode="markers", showlegend=False, hovertemplate="%{text}<extra></extra>"))
        # a legend entry of its own, since the marks have several colours
        key = go.Scatter(y=[None], meta=[0], name=word, mode="markers", marker={**marks, "color": COLOURS[-1]})
        figure.add_trace(key.update(hoverinfo="skip"))
    return len(rows)


def _layout(figure: go.Figure, coordinates: Sequence[Any], axis: str, missing: int) -> None:
    known = scales(coordinates, axis)
    strip = min(12 * missing + 8, 120) if missing else 0  # pixels
    low = strip / (HEIGHT - FRAME + strip)
    figure.update_layout(
        meta={"scales": {name: asdict(scale) for name, scale in known.items()}, "axis": axis},
        margin={"l": 52, "r": 14, "t": 22, "b": 44},
        height=HEIGHT + strip,
        hovermode="closest",
        legend={
            "orientation": "h",
            "y": -46 / (HEIGHT - FRAME + strip),
            "yanchor": "top",
            "x": 0,
            "font": {"size": 12},
        },
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, -apple-system, 'Segoe UI', sans-serif", "size": 12},
        xaxis={
            "zeroline": False,
            "showgrid": False,
            "ticks": "outside",
            "ticklen": 4,
            "anchor": "y2" if missing else "y",
        },
        yaxis={"zeroline": False, "domain": [low + 0.04 if missing else 0, 1], "nticks": 6},
    )
    if missing:
        plain = {"showgrid": False, "zeroline": False, "showticklabels": False, "fixedrange": True}
        title = {"text": "not<br>done", "font": {"size": 9}}
        figure.update_layout(yaxis2={"domain": [0, low], "range": [0.3 - missing, 0.7], "title": title, **plain})
    switch_scale(figure, next(iter(known)))


def switch_scale(figure: go.Figure, name: str) -> go.Figure:
    """Draw a figure of this module on another of its scales: `log`, `linear` or `even`.

    Raises:
        ValueError: its coordinates do not allow this scale.
    """
    known = figure.layout.meta["scales"]
    if name not in known:
        raise ValueError(f"scale {name!r} is not one of this figure's: {', '.join(known)}")
    scale = known[name]
    for trace in figure.data:
        trace.x = [None if at is None else scale["x"][at] for at in trace.meta]
    room = 0.04 * (scale["x"][-1] - scale["x"][0]) or 1.0
    figure.update_xaxes(
        tickvals=scale["ticks"],
        ticktext=[html.escape(label, quote=False) for label in scale["labels"]],
        title={"text": html.escape(scale["title"], quote=False), "standoff": 6},
        range=[scale["x"][0] - room, scale["x"][-1] + room],
    )
    return figure
