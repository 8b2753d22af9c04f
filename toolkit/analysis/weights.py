"""How much tuning and training moved each layer, as figures and a table, from the rows of `toolkit.merging.weights`;
and whether it says what a merge reaches."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from toolkit.analysis.axis import scales
from toolkit.analysis.charts import Chart, Panel, Point, Series
from toolkit.analysis.formats import number
from toolkit.analysis.gaps import show
from toolkit.study import Cell

if TYPE_CHECKING:
    import pandas as pd

    from toolkit.analysis.signals import Signal

CRITERION = "change_over_delta_abs"
LINES = {"delta_over_base_abs": "instruct - base", "change_over_base_abs": "trained - base"}
PANELS = {
    "delta_over_base_abs": "mean |instruct - base| / mean |base|",
    "change_over_base_abs": "mean |trained - base| / mean |base|",
    CRITERION: "mean |trained - base| / mean |instruct - base|",
    "cosine": "cosine of trained - base and instruct - base",
}
COLUMNS = {
    "base_abs": "|base|", "instruct_abs": "|instruct|", "delta_abs": "|delta|", "change_abs": "|change|",
    "delta_over_base_abs": "delta / base", "change_over_base_abs": "change / base", CRITERION: "change / delta",
    "cosine": "cosine", "delta_effective_rank": "rank of delta", "change_effective_rank": "rank of change",
}  # fmt: skip
MOST = 40  # sets of models whose lines an eye tells apart in a panel
Rows = Sequence[Mapping[str, Any]]


def layers(rows: Rows) -> Chart:
    """Mean |difference| over mean |base|, layer by layer; that of the whole model stands behind a line's name.

    Raises:
        ValueError: no layer is among the rows.
    """
    numbered = _numbered(rows)
    if not numbered:
        raise ValueError("no layer was measured: the names of the tensors hold no number between dots")
    places = sorted(numbered)  # files may hold layer 10 before layer 2
    whole = next(row for row in rows if row["part"] == "whole")
    series = [
        _line((key,), f"{label} (whole: {number(whole[key])})", numbered, places, key)
        for key, label in LINES.items()
        if whole.get(key) is not None
    ]
    return Chart(
        kind="lines", axis="layer", measure="mean |difference| / mean |base|",
        panels=(Panel(title="", series=tuple(series)),), scales={"linear": scales(places, "layer")["linear"]},
    )  # fmt: skip


def _numbered(rows: Rows) -> dict[int, Mapping[str, Any]]:
    return {
        int(row["name"].split()[1]): row for row in rows if row["part"] == "layer" and row["name"].startswith("layer ")
    }


def _line(
    key: tuple[Any, ...], name: str, numbered: Mapping[int, Mapping[str, Any]], places: Sequence[int], measure: str
) -> Series:
    points = [
        Point(at=at, value=numbered[place][measure], said=(number(numbered[place][measure]), f"layer {place}", name))
        for at, place in enumerate(places)
        if place in numbered and numbered[place].get(measure) is not None
    ]
    return Series(key=key, name=name, points=tuple(points))


def measured(cells: Sequence[Cell], folders: Mapping[str, Path]) -> dict[str, dict[str, Rows]]:
    """Stage -> which models -> the rows of their `weights.parquet`.

    Cells that merge the same models (with other scales, say) measured the same, and are one: it is called by the
    coordinates that they share.
    """
    found: dict[str, dict[str, list[Cell]]] = {}
    rows: dict[str, Rows] = {}
    for cell in cells:
        path = folders.get(cell.fingerprint, Path()) / "weights.parquet"
        if cell.fingerprint in folders and path.is_file():
            read = pq.read_table(path).to_pylist()
            key = repr(read)
            rows[key] = read
            found.setdefault(cell.stage, {}).setdefault(key, []).append(cell)
    named: dict[str, dict[str, Rows]] = {stage: {} for stage in found}
    for stage, sets in found.items():
        for key, members in sets.items():
            name = _shared(members) or stage
            named[stage][members[0].name if name in named[stage] else name] = rows[key]
    return named


def _shared(cells: Sequence[Cell]) -> str:
    first, *others = (cell.coords for cell in cells)
    return ", ".join(
        f"{axis} {show(at)}" for axis, at in first.items() if all(coords.get(axis) == at for coords in others)
    )


def by_layer(sets: Mapping[str, Rows]) -> Chart | None:
    """A panel for each ratio and the cosine, a line for each set of models; None where no layer was measured."""
    some = {name: _numbered(rows) for name, rows in list(sets.items())[:MOST]}
    places = sorted({place for numbered in some.values() for place in numbered})
    panels = []
    for key, title in PANELS.items():
        series = [_line((name,), name, numbered, places, key) for name, numbered in some.items()]
        drawn = tuple(one for one in series if one.points)
        if drawn:
            panels.append(Panel(title=title, series=drawn))
    scale = {"linear": scales(places, "layer")["linear"]} if places else {}
    return Chart(kind="lines", axis="layer", panels=tuple(panels), scales=scale) if panels else None


def listed(sets: Mapping[str, Rows]) -> tuple[list[str], list[list[str]]]:
    """Headers, and a row for the whole and each layer of each set of models."""
    rows = [(name, row) for name, found in sets.items() for row in found if row["part"] != "tensor"]
    shown = [key for key in COLUMNS if any(row.get(key) is not None for _, row in rows)]
    texts = [
        [name, str(row["name"]), *("–" if row.get(key) is None else f"{row[key]:.4g}" for key in shown)]
        for name, row in rows
    ]
    return ["models", "layer", *(COLUMNS[key] for key in shown)], texts


def criterion(frame: "pd.DataFrame") -> "list[Signal]":
    """The ratio |change| / |delta| of whole models beside every score at its coordinates (`signals`).

    Axes that the ratio does not depend on, such as the scale of the merge, belong to the scores alone: each of their
    coordinates has a correlation of its own.
    """
    import pandas as pd

    from toolkit.analysis.signals import axes_of, signals

    ratios = frame[(frame["metric"] == CRITERION) & frame["task"].isna() & frame["value"].notna()]
    parts = [frame[frame["task"].notna()]]
    for _, part in ratios.groupby("stage", sort=False):
        for axis in axes_of(part):
            others = [name for name in axes_of(part) if name != axis]
            groups = part.groupby(others, dropna=False)["value"] if others else None
            if groups is not None and groups.size().max() > 1 and groups.nunique().max() == 1:
                part = part.drop_duplicates(others).assign(**{axis: None})
        parts.append(part)
    asked = [f"{stage}.{CRITERION}" for stage in ratios["stage"].unique()]
    return signals(pd.concat(parts), None, asked=asked) if asked else []
