"""The items of two evaluated cells side by side: the same documents of one task, and a score of each.

Rows of `items.parquet` go together by task, filter and doc_id. Prompts may differ (shots and formats do), gold answers
may not: the same number for another question would be compared in silence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from toolkit.analysis.stats import Numbers
from toolkit.lookup import unknown

KEYS = ("task", "filter", "doc_id")
NOT_SCORES = (
    *KEYS, "prompt_hash", "prompt", "prediction", "gold", "correct", "loglikelihoods",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Sides:
    """Scores of the shared items in one order; `alone` counts items that only one side has."""

    first: Numbers
    second: Numbers
    metric: str
    alone: int


def read_all(folder: Path) -> pa.Table:
    """The items of all tasks in an evaluated cell's folder.

    Raises:
        ValueError: the cell keeps no items.
    """
    path = folder / "items.parquet"
    if not path.is_file():
        raise ValueError(f"{folder} keeps no items (items.parquet): compare cells of the job evaluate")
    return pq.read_table(path)


def read(folder: Path, task: str) -> pa.Table:
    """The items of one task in an evaluated cell's folder.

    Raises:
        ValueError: the cell keeps no items, or has none of this task.
    """
    items = read_all(folder)
    if task not in (known := pc.unique(items["task"]).to_pylist()):
        raise ValueError(unknown("task", task, known) + f" ({folder.name})")
    return items.filter(pc.equal(items["task"], task))


def shared_tasks(first: Path, second: Path) -> list[str]:
    """The tasks that both folders have items of, in the order of the first.

    Raises:
        ValueError: a folder keeps no items, or they share no task.
    """
    for folder in (first, second):
        if not (folder / "items.parquet").is_file():
            raise ValueError(f"{folder} keeps no items (items.parquet): compare cells of the job evaluate")
    one, two = (
        pc.unique(pq.read_table(folder / "items.parquet", columns=["task"])["task"]).to_pylist()
        for folder in (first, second)
    )
    if not set(one) & set(two):
        raise ValueError(f"the cells share no task: one has {', '.join(one)}, the other {', '.join(two)}")
    return [task for task in one if task in two]


def parts(tables: Sequence[pa.Table]) -> dict[str, list[pa.Table]]:
    """What all tables (of `read_all`) have items of, by name: each task, or where it has several filters each of them,
    as `gsm8k/strict-match`: an item has one score of a filter."""
    asked = [table.group_by(["task", "filter"], use_threads=False).aggregate([]).to_pylist() for table in tables]
    shared = [row for row in asked[0] if all(row in other for other in asked[1:])]
    several = {row["task"] for i, row in enumerate(shared) if row["task"] in [other["task"] for other in shared[:i]]}
    return {
        f"{row['task']}/{row['filter']}" if row["task"] in several else row["task"]: [
            table.filter(pc.and_(pc.equal(table["task"], row["task"]), pc.equal(table["filter"], row["filter"])))
            for table in tables
        ]
        for row in shared
    }


def pair(first: pa.Table, second: pa.Table, metric: str = "") -> Sides:
    """Join two tables of items (of `read`) and take `metric` from each: `correct` where items are right or wrong, else
    the first metric that both have.

    Raises:
        ValueError: no shared item, another gold answer for the same item, several filters, or no such metric.
    """
    chosen = _metric(first, second, metric)
    sides = [_by_document(items, chosen) for items in (first, second)]
    shared = [key for key in sides[0] if key in sides[1]]
    if not shared:
        raise ValueError("the two cells share no item: they were evaluated on other rows, or with other filters")
    for key in shared:
        if sides[0][key]["gold"] != sides[1][key]["gold"]:
            raise ValueError(
                f"item {key[1]} has the gold answer {sides[0][key]['gold']!r:.80} in one cell and "
                f"{sides[1][key]['gold']!r:.80} in the other: these are not the same questions"
            )
    if len({key[0] for key in shared}) > 1:
        raise ValueError(f"items have several filters: {', '.join(sorted({key[0] for key in shared}))}; choose one")
    numbers = [np.array([side[key][chosen] for key in shared], np.float64) for side in sides]
    return Sides(
        first=numbers[0], second=numbers[1], metric=chosen, alone=len(sides[0]) + len(sides[1]) - 2 * len(shared)
    )


def stack(tables: Sequence[pa.Table], metric: str = "") -> Numbers:
    """Scores of several runs (seeds) on the items that all of them have: runs x items, for `seeds.spread`.

    Raises:
        ValueError: fewer than two runs, or runs that do not pair (see `pair`).
    """
    if len(tables) < 2:
        raise ValueError(f"{len(tables)} runs: the spread between runs needs two or more")
    metric = pair(tables[0], tables[1], metric).metric
    sides = [_by_document(items, metric) for items in tables]
    for items in tables[1:]:
        pair(tables[0], items, metric)  # the same questions?
    shared = [key for key in sides[0] if all(key in side for side in sides)]
    return np.array([[side[key][metric] for key in shared] for side in sides], np.float64)


def _metric(first: pa.Table, second: pa.Table, metric: str) -> str:
    both = metrics(first, second)
    if not both or (metric and metric not in both):
        raise ValueError(unknown("metric", metric, both) + " (of both cells' items)")
    return metric or ("correct" if "correct" in both else both[0])


def metrics(first: pa.Table, second: pa.Table) -> list[str]:
    """The scores that items of both tables have."""

    def known(items: pa.Table) -> list[str]:
        whole = [n for n in items.column_names if items[n].null_count < items.num_rows]
        return [n for n in whole if n == "correct" or n not in NOT_SCORES]

    return [name for name in known(first) if name in known(second)]


def _by_document(items: pa.Table, metric: str) -> dict[tuple[str, int], dict[str, Any]]:
    rows = items.select(["filter", "doc_id", "gold", metric]).to_pylist()
    return {(row["filter"], row["doc_id"]): row for row in rows}
