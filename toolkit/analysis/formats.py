"""Tables as text and files: markdown rounded, with standard errors; LaTeX with intervals; CSV and parquet in full.

The same four functions take the long table of `measure` or a `Pivot`. In a rectangle a place without a number shows why
(`never-run`, `failed: DISK_FULL`), a place that the study does not have is a dash, and not-a-number stays `nan`.
"""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from toolkit.analysis.gaps import show
from toolkit.analysis.pivot import Pivot, bounds_of

if TYPE_CHECKING:
    import pandas as pd

LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "±": r"$\pm$",
    **{c: "\\" + c for c in "&%$#_{}"},
    **{c: f"\\text{name}{{}}" for c, name in {"<": "less", ">": "greater", "|": "bar"}.items()},
}


def number(value: float) -> str:
    """A number for people: 3 decimals, from 10 on whole numbers whole, 3 digits below 0.0005 and from 100,000."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) >= 10:
        return str(int(value))
    return f"{value:.3f}" if value == 0 or 5e-4 <= abs(value) < 1e5 else f"{value:.3g}"


def with_error(value: float, stderr: float | None) -> str:
    """`0.512 ± 0.031`, or the number alone where the standard error is unknown."""
    if stderr is None or math.isnan(stderr):
        return number(value)
    return f"{number(value)} ± {number(stderr) if stderr >= 0.0005 or stderr == 0 else f'{stderr:.1g}'}"


def with_interval(value: float, low: float, high: float) -> str:
    """`0.512 [0.443, 0.580]`, or the number alone where the interval is unknown."""
    return number(value) if math.isnan(low) or math.isnan(high) else f"{number(value)} [{number(low)}, {number(high)}]"


def grid(data: pa.Table | Pivot, bounds: bool = False) -> tuple[list[str], list[list[str]]]:
    """Headers and rows of text, rounded: what markdown and a terminal show; LaTeX with `bounds`: 95 % intervals."""
    return _pivot_grid(data, bounds) if isinstance(data, Pivot) else _long_grid(data, bounds)


def _pivot_grid(data: Pivot, bounds: bool) -> tuple[list[str], list[list[str]]]:
    headers = [*data.rows, *(_heading(data, label) for label in data.col_labels)]
    rows = []
    for i, label in enumerate(data.row_labels):
        rows.append([*map(show, label), *(_place(data, i, j, bounds) for j in range(len(data.col_labels)))])
    return headers, rows


def _heading(data: Pivot, label: Sequence[Any]) -> str:
    return " / ".join(map(show, label)) or data.values


def _place(data: Pivot, i: int, j: int, bounds: bool) -> str:
    if not data.cells[i, j]:
        return "–"
    if data.mark[i, j] is not None:
        return str(data.mark[i, j])
    if bounds:
        text = with_interval(float(data.value[i, j]), float(data.low[i, j]), float(data.high[i, j]))
    else:
        text = with_error(float(data.value[i, j]), float(data.stderr[i, j]))
    if not data.mean_over:
        return text
    count, cells = data.count[i, j], data.cells[i, j]
    return f"{text} (n={count})" if count == cells else f"{text} (n={count} of {cells})"


def _long_grid(table: pa.Table, bounds: bool) -> tuple[list[str], list[list[str]]]:
    names = [n for n in table.column_names if n not in ("stderr", "reason")]
    columns = {name: [show(v) for v in table[name].to_pylist()] for name in names}
    values, errors = table["value"].to_pylist(), table["stderr"].to_pylist()
    if bounds:
        ends = zip(*bounds_of(table))
        columns["value"] = [show(None) if v is None else with_interval(v, *end) for v, end in zip(values, ends)]
    else:
        columns["value"] = [show(None) if v is None else with_error(v, e) for v, e in zip(values, errors)]
    reasons = table["reason"].to_pylist()
    columns["state"] = [f"{s}: {r}" if r else s for s, r in zip(columns["state"], reasons)]
    return names, [list(row) for row in zip(*columns.values())]


def to_markdown(data: pa.Table | Pivot) -> str:
    """A GitHub table; the columns are aligned so that it reads well as plain text too."""
    return _markdown_of(*grid(data))


def _markdown_of(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [[_markdown(c) for c in row] for row in [headers, *rows]]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(headers))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths)) + " |" for row in cells]
    return "\n".join([lines[0], "| " + " | ".join("-" * w for w in widths) + " |", *lines[1:]]) + "\n"


def frame_text(frame: "pd.DataFrame", kind: str) -> str:
    """A frame of `dynamics` as `markdown` or `latex`, rounded, or as `csv` at full precision; what is missing is a
    dash, in CSV empty.

    Raises:
        ValueError: a frame without a row.
    """
    if frame.empty:
        raise ValueError("nothing of this can be worked out: too few checkpoints, or no row of this kind")
    if kind == "csv":
        return frame.to_csv(index=False)
    whole = [name for name in frame if frame[name].dtype.kind == "f" and (frame[name].dropna() % 1 == 0).all()]
    frame = frame.astype(dict.fromkeys(whole, "Int64"))  # epochs of models, beside a base that has none
    plain = frame.astype(object).where(frame.notna(), None)
    columns = {str(name): [_frame_cell(v) for v in plain[name]] for name in plain}
    rows = [list(row) for row in zip(*columns.values())]
    if kind == "markdown":
        return _markdown_of(list(columns), rows)
    numbers = "".join("r" if frame[name].dtype.kind in "fiu" else "l" for name in frame)
    return _latex_of(list(columns), rows, numbers)


def _frame_cell(value: Any) -> str:
    return number(value) if isinstance(value, float) else show(value)


def _markdown(text: str) -> str:
    # hazard: a label with a pipe or a line break would break the row, one with a tag would be taken as HTML
    plain = " ".join(text.split())
    return plain.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def to_latex(data: pa.Table | Pivot) -> str:
    r"""A booktabs `tabular` with 95 % intervals, every text escaped; needs `\usepackage{booktabs}`."""
    headers, rows = grid(data, bounds=True)
    left = len(data.rows) if isinstance(data, Pivot) else len(headers)
    return _latex_of(headers, rows, "l" * left + "r" * (len(headers) - left))


def _latex_of(headers: Sequence[str], rows: Sequence[Sequence[str]], columns: str) -> str:
    lines = [" & ".join(map(latex, row)) + r" \\" for row in [headers, *rows]]
    top = [f"\\begin{{tabular}}{{{columns}}}", r"\toprule", lines[0], r"\midrule"]
    return "\n".join([*top, *lines[1:], r"\bottomrule", r"\end{tabular}"]) + "\n"


def latex(text: str) -> str:
    """`text` with everything that LaTeX would act on made literal."""
    return "".join(LATEX.get(c, c) for c in " ".join(text.split()))


def full(data: pa.Table | Pivot) -> pa.Table:
    """An arrow table at full precision. A rectangle has for each column a number, `... stderr`, `... n` (how many were
    averaged; only of a mean) and `... state`: what stands in place of a number, or done."""
    if not isinstance(data, Pivot):
        return pa.table({n: _plain(data[n]) for n in data.column_names})
    columns: list[tuple[str, pa.Array]] = []
    for k, name in enumerate(data.rows):
        labels = [label[k] for label in data.row_labels]
        mixed = len({type(v) for v in labels if v is not None}) > 1
        columns.append((name, pa.array([show(v) if mixed else v for v in labels])))
    for j, label in enumerate(data.col_labels):
        columns += _full_column(data, j, _heading(data, label))
    return pa.Table.from_arrays([array for _, array in columns], names=[name for name, _ in columns])


def _full_column(data: Pivot, j: int, heading: str) -> list[tuple[str, pa.Array]]:
    if data.values == "state":
        return [(heading, pa.array(data.mark[:, j], pa.string()))]
    measured = data.count[:, j] > 0
    known = measured & ~np.isnan(data.stderr[:, j])
    states = [m or ("done" if n else None) for m, n in zip(data.mark[:, j], data.cells[:, j])]
    found = [(heading, pa.array(data.value[:, j], mask=~measured))]
    found += [(f"{heading} stderr", pa.array(data.stderr[:, j], mask=~known))]
    if data.mean_over:
        found += [(f"{heading} n", pa.array(data.count[:, j]))]
    return [*found, (f"{heading} state", pa.array(states, pa.string()))]


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def to_csv(data: pa.Table | Pivot) -> str:
    """CSV at full precision (the shortest digits that read back the same); a missing number is empty, never 0."""
    table = full(data)
    out = io.BytesIO()
    pyarrow.csv.write_csv(table, out, pyarrow.csv.WriteOptions(quoting_style="needed", quoting_header="needed"))
    return out.getvalue().decode()


def to_parquet(data: pa.Table | Pivot, path: Path) -> Path:
    """Write a parquet file at full precision; equal tables give equal bytes."""
    pq.write_table(full(data), path, compression="zstd")
    return path
