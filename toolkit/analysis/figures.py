"""Interactive figures (plotly) of a study: metrics over checkpoints, losses over training steps.

One panel for each task and metric, one line for each combination of the other coordinates, with its interval. A
checkpoint that has no number stands in a strip below the panel with its state, and the line is broken there.
"""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from toolkit.analysis.drawing import Point, panel
from toolkit.analysis.formats import number
from toolkit.analysis.gaps import encode, keys, show, spread_gaps, state_texts
from toolkit.analysis.stats import intervals, mean_interval
from toolkit.study import Cell

PANELS, POINTS = 60, 25_000  # of one page: a point takes about 250 bytes of it
LOSS_POINTS = 400  # of a loss curve: more than a panel has pixels for


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One figure, and what it shows: a metric of a task (None for a job's own metrics) of some stages."""

    title: str
    task: str | None
    metric: str
    figure: go.Figure


def curves(
    table: pa.Table, over: str, mean_over: Sequence[str] = ("seed",), most: int = PANELS, confidence: float = 0.95
) -> tuple[list[Panel], int]:
    """A panel for each (task, metric) measured at two or more coordinates of `over`, and how many more there are.

    At most `most` panels are drawn, fewer where they hold more than `POINTS` points. Measurements that differ in the
    columns `mean_over` alone are drawn as their mean, with Student's t interval over them. Cells without a coordinate
    on `over` are drawn as a horizontal line.
    """
    whole = spread_gaps(table)
    whole = whole.filter(pc.is_valid(whole["metric"]))
    panels: list[Panel] = []
    groups, points = _groups(whole, over), 0
    for rows in groups[:most]:
        if panels and points + len(rows) > POINTS:
            break
        part = whole.take(pa.array(rows))
        (task,), (metric,) = part["task"].unique().to_pylist(), part["metric"].unique().to_pylist()
        panels.append(_curve_panel(part, over, task, metric, mean_over, confidence))
        points += sum(len(trace.y) for trace in panels[-1].figure.data if trace.fill is None)
    return panels, len(groups) - len(panels)


def _groups(table: pa.Table, over: str) -> list[np.ndarray]:
    """The rows of each (task, metric) with two or more coordinates on `over`; by task, own metrics of jobs last."""
    tasks, names = encode(table["task"])
    metrics, words = encode(table["metric"])
    places, coordinates = encode(table[over])
    by_task = _ranks([(name is None, name or "") for name in names])
    key = by_task[tasks] * len(words) + _ranks(words)[metrics] if len(table) else tasks
    order = np.argsort(key, kind="stable")
    starts = np.flatnonzero(np.diff(key[order], prepend=-1))
    on_axis = np.array([c is not None for c in coordinates], bool)[places[order]]
    low = np.minimum.reduceat(np.where(on_axis, places[order], len(coordinates)), starts) if len(starts) else starts
    high = np.maximum.reduceat(np.where(on_axis, places[order], -1), starts) if len(starts) else starts
    return [rows for rows, some in zip(np.split(order, starts[1:]), low < high) if some]


def _ranks(labels: Sequence[Any]) -> np.ndarray:
    """The place of each label when they are sorted."""
    ranks = np.empty(len(labels), np.int64)
    ranks[sorted(range(len(labels)), key=lambda i: labels[i])] = np.arange(len(labels))
    return ranks


def _curve_panel(
    part: pa.Table, over: str, task: str | None, metric: str, mean_over: Sequence[str], confidence: float
) -> Panel:
    codes, labels = encode(part[over])
    coordinates = [label for label in labels if label is not None]
    at = np.where(codes == len(coordinates), -1, codes)
    varying = [n for n in keys(part) if n not in (over, "task", "metric", *mean_over) and len(encode(part[n])[1]) > 1]
    lines = _lines(part, varying, at, _bounds(part, metric, confidence), [f"{over} {show(c)}" for c in coordinates])
    names = [" · ".join(map(_named, varying, key)) or metric for key in lines]
    stages = ", ".join(encode(part["stage"])[1])
    title = f"{task} · {metric}" if task else f"{stages} · {metric}"
    return Panel(title=title, task=task, metric=metric, figure=panel(lines, names, coordinates, over))


def _named(name: str, label: Any) -> str:
    """`shots 4`, `checkpoint`: a number alone would not say what it counts."""
    return show(label) if isinstance(label, str) else f"{name} {show(label)}"


def _bounds(part: pa.Table, metric: str, confidence: float) -> list[dict[str, Any]]:
    """Per row its value, low, high, state (None where there is a number) and a line about its interval."""
    values, errors, sizes = (
        pc.cast(part[name], pa.float64()).combine_chunks().to_numpy(zero_copy_only=False)
        for name in ("value", "stderr", "n")
    )
    found = intervals(metric, values, errors, sizes, confidence)
    rows = []
    for i, text in enumerate(state_texts(part)):
        missing = math.isnan(values[i])
        said = text if missing else number(values[i])
        if found.method[i]:
            said += (
                f"  [{number(found.low[i])}, {number(found.high[i])}] {found.method[i]}, n = {sizes[i]:.0f}".replace(
                    " n = nan", ""
                )
            )
        state = ("no value: nan" if text == "no value" and part["value"][i].is_valid else text) if missing else None
        rows.append({"value": values[i], "low": found.low[i], "high": found.high[i], "state": state, "said": said})
    return rows


def _lines(
    part: pa.Table, varying: Sequence[str], at: np.ndarray, rows: Sequence[Mapping[str, Any]], places: Sequence[str]
) -> dict[tuple[Any, ...], list[Point]]:
    """Line key -> its points in the order of the axis."""
    columns = [encode(part[name]) for name in varying]
    groups: dict[tuple[int, ...], dict[int, list[int]]] = {}
    for row, place in enumerate(at.tolist()):
        groups.setdefault(tuple(int(codes[row]) for codes, _ in columns), {}).setdefault(place, []).append(row)
    lines = {}
    for key in sorted(groups):
        labels = tuple(names[k] for k, (_, names) in zip(key, columns))
        head = "<br>".join(html.escape(f"{n}: {show(v)}", quote=False) for n, v in zip(varying, labels))
        points = [_point(place, [rows[r] for r in members]) for place, members in sorted(groups[key].items())]
        lines[labels] = [_with_text(p, f"{places[p.at]}<br>" if p.at >= 0 else "", head) for p in points]
    return lines


def _point(at: int, rows: Sequence[Mapping[str, Any]]) -> Point:
    """One measurement, or the mean of several; missing ones beside others are said, not averaged."""
    measured = [r for r in rows if r["state"] is None]
    if not measured:
        state = rows[0]["state"]
        return Point(at=at, state=state, text=state)
    if len(rows) == 1:
        return Point(at=at, value=rows[0]["value"], low=rows[0]["low"], high=rows[0]["high"], text=rows[0]["said"])
    mean, low, high = mean_interval([r["value"] for r in measured])
    text = f"{number(mean)}  [{number(low)}, {number(high)}] t interval, mean of {len(measured)} of {len(rows)} runs"
    return Point(at=at, value=mean, low=low, high=high, text=text)


def _with_text(point: Point, place: str, head: str) -> Point:
    said = html.escape(point.text, quote=False)
    text = f"<b>{said}</b><br>{place}{head}".removesuffix("<br>")
    return Point(at=point.at, value=point.value, low=point.low, high=point.high, state=point.state, text=text)


def losses(cells: Sequence[Cell], folders: Mapping[str, Path]) -> list[Panel]:
    """A panel for each stage whose cells left a `loss.parquet` (step, loss, ...), a line for each cell."""
    stages: dict[str, dict[tuple[Any, ...], list[tuple[int, float]]]] = {}
    for cell in cells:
        path = folders.get(cell.fingerprint, Path()) / "loss.parquet"
        if cell.fingerprint in folders and path.exists():
            key = tuple(f"{k} {show(v)}" for k, v in cell.coords.items())
            stages.setdefault(cell.stage, {})[key] = _read_losses(path)
    return [_loss_panel(stage, curves) for stage, curves in stages.items()]


def _read_losses(path: Path) -> list[tuple[int, float]]:
    """(step, loss), thinned to evenly spaced rows, the last one kept; means would hide a spike."""
    with pq.ParquetFile(path) as file:
        table = file.read(columns=["step", "loss"])
    every = max(1, math.ceil(table.num_rows / LOSS_POINTS))
    kept = sorted({*range(0, table.num_rows, every), max(table.num_rows - 1, 0)} if table.num_rows else ())
    thin = table.take(kept)
    return list(zip(thin["step"].to_pylist(), thin["loss"].to_pylist()))


def _loss_panel(stage: str, curves_of: Mapping[tuple[Any, ...], Sequence[tuple[int, float]]]) -> Panel:
    steps = sorted({step for curve in curves_of.values() for step, _ in curve})
    position = {step: i for i, step in enumerate(steps)}
    lines, names = {}, []
    for key, curve in curves_of.items():
        name = " · ".join(key) or stage
        head = html.escape(name, quote=False)
        lines[key] = [
            Point(
                at=position[s],
                value=math.nan if v is None else v,
                text=f"<b>{number(v or math.nan)}</b><br>step {s}<br>{head}",
            )
            for s, v in curve
        ]
        names.append(name)
    figure = panel(lines, names, steps, "step")
    return Panel(title=f"{stage} · training loss", task=None, metric="loss", figure=figure)
