"""What the operations on a long table share: its columns as codes, and the places where a missing cell belongs.

A cell that is not done does not know what it would have measured. `spread_gaps` takes it from the done cells of its
stage, so that a missing cell stands in the same column or panel as its neighbours instead of in one of its own.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

LIKE = b"tidemark.stages_alike"
NUMBERS = ("value", "stderr", "n")
NOT_KEYS = ("job", "value", "stderr", "n", "state", "reason", "fingerprint")


def keys(table: pa.Table) -> list[str]:
    """The columns that tell one measurement from another: stage, the axes, task, metric."""
    return [name for name in table.column_names if name not in NOT_KEYS]


def show(label: Any) -> str:
    """A coordinate as text; a dash where a cell lacks the axis."""
    return "–" if label is None else str(label).lower() if isinstance(label, bool) else str(label)


def encode(column: pa.ChunkedArray) -> tuple[np.ndarray, list[Any]]:
    """Codes and labels of a column. Numbers ascend, text keeps the order of the study, what is missing comes last."""
    array = column.combine_chunks()
    if not pa.types.is_dictionary(array.type):
        array = array.dictionary_encode()
    codes = array.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    used, first = np.unique(codes, return_index=True)
    labels = [None if code < 0 else array.dictionary[int(code)].as_py() for code in used]
    if any(isinstance(label, str) for label in labels):
        order = sorted(range(len(used)), key=lambda i: (labels[i] is None, first[i]))
    else:
        order = sorted(range(len(used)), key=lambda i: (labels[i] is None, labels[i]))
    rank = np.empty(len(used), np.int64)
    rank[order] = np.arange(len(used))
    return rank[np.searchsorted(used, codes)], [labels[i] for i in order]


def state_texts(table: pa.Table) -> list[str]:
    """Per row what to say of a cell without a value: `failed: DISK_FULL`, `never-run`; `no value` if it is done."""
    states, reasons = table["state"].to_pylist(), table["reason"].to_pylist()
    plain = ["no value" if s == "done" else s for s in states]
    return [f"{s}: {r}" if r else s for s, r in zip(plain, reasons)]


Known = Mapping[
    Any, set[tuple[Any, Any]]
]  # stage, or group of like stages -> the (task, metric) pairs of its done cells


def spread_gaps(table: pa.Table) -> pa.Table:
    """`table` with a row for every (task, metric) that a cell lacks, in place of its row without metric."""
    is_gap = pc.is_null(table["metric"])
    done = table.filter(pc.invert(is_gap))
    like = stages_alike(table)
    known = _pairs(done, like)
    position, tasks, metrics = [], [], []
    gaps = table.append_column("position", pa.array(np.arange(table.num_rows))).filter(is_gap)
    for gap in gaps.select(["stage", "task", "position"]).to_pylist():
        for task, metric in _expected(gap["stage"], gap["task"], known, like):
            position.append(gap["position"])
            tasks.append(task)
            metrics.append(metric)
    if not position:
        return done
    missing = table.take(pa.array(position, pa.int64()))
    for name, column in (("task", tasks), ("metric", metrics)):
        values = pa.array(column, pa.string()).cast(table.schema.field(name).type)
        missing = missing.set_column(table.schema.get_field_index(name), name, values)
    both = pa.concat_tables([done, missing]).unify_dictionaries().combine_chunks()
    kept = np.flatnonzero(~is_gap.to_numpy())
    return both.take(pa.array(np.argsort(np.concatenate([kept, position]), kind="stable")))


def with_stages_alike(table: pa.Table, like: Mapping[str, str]) -> pa.Table:
    """`table` with a word for each stage in its metadata; stages of one word measure alike (same job, same inputs)."""
    return table.replace_schema_metadata({LIKE: json.dumps(like)})


def stages_alike(table: pa.Table) -> dict[str, str]:
    return json.loads((table.schema.metadata or {}).get(LIKE, b"{}"))


def _pairs(done: pa.Table, like: Mapping[str, str]) -> Known:
    found: dict[Any, set[tuple[Any, Any]]] = {}
    for row in done.select(["stage", "task", "metric"]).group_by(["stage", "task", "metric"]).aggregate([]).to_pylist():
        for group in {row["stage"], like.get(row["stage"], row["stage"])}:
            found.setdefault(group, set()).add((row["task"], row["metric"]))
    return found


def _expected(stage: str, task: str | None, known: Known, like: Mapping[str, str]) -> list[tuple[Any, Any]]:
    """What a missing cell would have measured: as the rest of its stage did, or else as stages like it did; where none
    of these is done its metric is unknown."""
    pairs = known.get(stage) or known.get(like.get(stage)) or set()
    return sorted((p for p in pairs if task in (None, p[0])), key=lambda p: (p[0] or "", p[1])) or [(task, None)]
