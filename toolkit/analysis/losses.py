"""Training losses as charts: one panel for each stage whose cells left a `loss.parquet`, a line for each cell."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from toolkit.analysis.axis import scales
from toolkit.analysis.charts import Chart, Panel, Point, Series
from toolkit.analysis.formats import number
from toolkit.analysis.gaps import show
from toolkit.study import Cell

POINTS, LINES = 400, 40  # of a curve: more than a panel has pixels for; of a panel: more than an eye tells apart


def losses(cells: Sequence[Cell], folders: Mapping[str, Path]) -> list[tuple[str, Chart]]:
    """(stage, chart); of a stage with more than `LINES` cells the first are drawn, and the title says so."""
    stages: dict[str, list[tuple[Cell, Path]]] = {}
    for cell in cells:
        path = folders.get(cell.fingerprint, Path()) / "loss.parquet"
        if cell.fingerprint in folders and path.exists():
            stages.setdefault(cell.stage, []).append((cell, path))
    return [(stage, _chart(stage, members)) for stage, members in stages.items()]


def _chart(stage: str, members: Sequence[tuple[Cell, Path]]) -> Chart:
    read = [(cell, _read(path)) for cell, path in members[:LINES]]
    steps = sorted({step for _, curve in read for step, _ in curve})
    place = {step: i for i, step in enumerate(steps)}
    series = []
    for cell, curve in read:
        name = ", ".join(f"{axis} {show(at)}" for axis, at in cell.coords.items()) or stage
        points = [Point(at=place[step], value=loss, said=(number(loss), f"step {step}", name)) for step, loss in curve]
        series.append(Series(key=tuple(cell.coords.items()), name=name, points=tuple(points)))
    some = f", {LINES} of {len(members)} cells" if len(members) > LINES else ""
    panel = Panel(title=f"{stage} · training loss{some}", series=tuple(series))
    return Chart(kind="lines", axis="step", panels=(panel,), scales=scales(steps, "step"), measure="loss")


def _read(path: Path) -> list[tuple[int, float]]:
    """(step, loss), thinned to evenly spaced rows, the last one kept; means would hide a spike."""
    with pq.ParquetFile(path) as file:
        table = file.read(columns=["step", "loss"])
    every = max(1, math.ceil(table.num_rows / POINTS))
    kept = sorted({*range(0, table.num_rows, every), max(table.num_rows - 1, 0)} if table.num_rows else ())
    thin = table.take(kept)
    return [
        (step, math.nan if loss is None else loss)
        for step, loss in zip(*(thin[n].to_pylist() for n in ("step", "loss")))
    ]
