"""One row a measurement: the coordinates of its cell, what was measured, and the state of the cell.

`measure` turns cells, their states and their committed folders into an arrow table. A cell that is not done has a row
as well, with its state and no value: nothing is dropped, and nothing that was not measured is a number. The order is
that of the study (cells as they come), then task, then metric, so that equal inputs give equal bytes.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from toolkit.analysis.gaps import with_stages_alike
from toolkit.analysis.guards import with_harnesses
from toolkit.analysis.rows import NAMES, Rows, collect
from toolkit.fingerprint import SHORT
from toolkit.plan import STATES, CellState
from toolkit.study import COLUMNS, Cell, Scalar


def measure(
    cells: Sequence[Cell],
    states: Mapping[str, CellState],
    folders: Mapping[str, Path],
    axes: Sequence[str],
    index: Path | None = None,
) -> pa.Table:
    """The long table of a study.

    Args:
        cells: in the order of the study.
        states: fingerprint -> state.
        folders: fingerprint -> committed folder, for every cell that is done.
        axes: every axis of the study, in the order of the columns; those of published rows come after them.
        index: a parquet file that keeps the rows between calls; written when something new was read.

    Returns:
        Columns stage, job, the axes, task, metric, value, stderr, n, state, reason, fingerprint (12 digits). A cell
        that is done but whose files cannot be seen has the reason FS_VISIBILITY.

    Raises:
        ValueError: an axis has the name of a column, or an artifact's rows are malformed.
    """
    done = {c.fingerprint: folders[c.fingerprint] for c in cells if states[c.fingerprint].state == "done"}
    rows = collect(done, index)
    measured, owner = _join(cells, rows)
    points, place = _points(cells, measured["coords"].combine_chunks(), owner)
    axes = list(dict.fromkeys([*axes, *(axis for point in points for axis in point)]))
    for axis in axes:
        if axis in COLUMNS:
            raise ValueError(f"axis {axis!r} has the name of a column of the table: rename it ({', '.join(COLUMNS)})")
    table = pa.table(
        {
            "stage": _names([c.stage for c in cells], owner),
            "job": _names([c.job for c in cells], owner),
            **{axis: coordinate_column([p.get(axis) for p in points], place) for axis in axes},
            **{name: measured[name] for name in ("task", "metric", "value", "stderr", "n")},
            "state": _names([states[c.fingerprint].state for c in cells], owner),
            "reason": _names([_reason(c, states, rows) for c in cells], owner),
            "fingerprint": _names([c.fingerprint[:SHORT] for c in cells], owner),
        }
    )
    alike = with_stages_alike(table, {c.stage: " ".join([c.job, *sorted(c.inputs)]) for c in cells})
    return with_harnesses(alike, measured["harness"])


def _points(
    cells: Sequence[Cell], coords: pa.DictionaryArray, owner: np.ndarray
) -> tuple[list[Mapping[str, Any]], np.ndarray]:
    """The different coordinates that rows have, and which of them each row has: its cell's, and its own beside them."""
    if coords.null_count == len(coords):
        return [c.coords for c in cells], owner
    own = [{}, *(json.loads(text) for text in coords.dictionary.to_pylist())]
    codes = coords.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64) + 1
    used, place = np.unique(owner * len(own) + codes, return_inverse=True)
    return [{**cells[at // len(own)].coords, **own[at % len(own)]} for at in used.tolist()], place


def _reason(cell: Cell, states: Mapping[str, CellState], rows: Rows) -> str | None:
    return "FS_VISIBILITY" if cell.fingerprint in rows.invisible else states[cell.fingerprint].reason or None


def _join(cells: Sequence[Cell], rows: Rows) -> tuple[pa.Table, np.ndarray]:
    """The measurement columns in the order of the cells, and the cell's position that each row belongs to."""
    starts, counts = [], []
    tasks: list[str | None] = []
    for cell in cells:
        start, count = rows.where.get(cell.fingerprint, (-1, 0))
        if not count:
            missing: list[str | None] = [*tasks_of(cell)] or [None]
            start, count = rows.table.num_rows + len(tasks), len(missing)
            tasks += missing
        starts.append(start)
        counts.append(count)
    owner = np.repeat(np.arange(len(cells)), counts)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    take = np.repeat(np.array(starts, np.int64), counts) + within
    source = rows.table.drop_columns(["artifact", "stamp"])
    names = pa.array(tasks, pa.string()).cast(NAMES)
    gaps = pa.table({f.name: names if f.name == "task" else pa.nulls(len(tasks), f.type) for f in source.schema})
    both = pa.concat_tables([source, gaps]).unify_dictionaries().combine_chunks()
    return (both if np.array_equal(take, np.arange(both.num_rows)) else both.take(pa.array(take))), owner


def tasks_of(cell: Cell) -> list[str]:
    """The tasks that a cell's spec names, sorted; [] where it names none."""
    tasks = cell.spec.get("tasks") or ()
    return sorted(str(t) for t in ([tasks] if isinstance(tasks, str) else tasks))


def _names(values: Sequence[str | None], owner: np.ndarray) -> pa.DictionaryArray:
    """A dictionary column: `values` per cell, spread over the rows that `owner` gives to each cell."""
    codes: dict[str, int] = {}
    per_cell = np.array([-1 if v is None else codes.setdefault(v, len(codes)) for v in values], np.int32)
    indices = per_cell[owner] if len(values) else per_cell
    return pa.DictionaryArray.from_arrays(pa.array(indices, mask=indices < 0), pa.array(list(codes), pa.string()))


def coordinate_column(values: Sequence[Scalar | None], owner: np.ndarray) -> pa.Array:
    """A column of one axis in the narrowest type that holds every coordinate: bool, int64, float64, else text."""
    kinds = {type(v) for v in values if v is not None}
    if not kinds or not (kinds == {bool} or kinds <= {int, float}):
        return _names([None if v is None else _text(v) for v in values], owner)
    kind = pa.bool_() if kinds == {bool} else pa.int64() if kinds == {int} else pa.float64()
    return pa.array(values, kind).take(pa.array(owner))


def _text(value: Scalar) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def counts(cells: Iterable[Cell], states: Mapping[str, CellState]) -> dict[str, int]:
    """How many cells are in each state, in the order in which a person reads them."""
    found = dict.fromkeys(STATES, 0)
    for cell in cells:
        state = states[cell.fingerprint].state
        found[state] = found.get(state, 0) + 1
    return found
