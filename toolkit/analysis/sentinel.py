"""Whether an evaluation comes out the same when it is done again.

A sentinel is a stage of the job evaluate with the axis `repeat`: cells that ask one model the same questions, each from
nothing, with every batch of a long study. What decides their numbers is the same in all of them by identity, so where
they differ, something outside it has changed: a library, a driver, a card, or the data behind an unpinned name.
"""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from toolkit.analysis.gaps import keys, show

REPEAT = "repeat"
ROUNDING = 1e-5  # of a score: what the order of additions on another card may do


def drift(table: pa.Table) -> list[str]:
    """Measurements that differ between the repeats of one evaluation, by more than rounding.

    Rows belong together that are equal in stage, task, metric and every axis but `repeat`. Each finding names the
    first repeat and all that differ from it, with the difference in standard errors of the first where it has one.
    """
    if REPEAT not in table.column_names:
        return []
    names = [name for name in keys(table) if name != REPEAT]
    rows = table.filter(pc.and_(pc.is_valid(table[REPEAT]), pc.is_valid(table["value"])))
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows.select([*names, REPEAT, "value", "stderr"]).to_pylist():
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    return [text for group in found.values() if (text := _differ(group, names))]


def _differ(group: list[dict[str, Any]], names: list[str]) -> str:
    first, *others = group
    limit = ROUNDING * max(1.0, abs(first["value"]))
    apart = [row for row in others if abs(row["value"] - first["value"]) > limit]
    if not apart:
        return ""
    values = ", ".join(f"{row['value']:.5f} (repeat {show(row[REPEAT])})" for row in [first, *apart])
    most = max(abs(row["value"] - first["value"]) for row in apart)
    size = f", {most / first['stderr']:.2g} standard errors" if first["stderr"] else ""
    without = ("stage", "task", "metric", "tokens")
    cell = " ".join(f"{name} {show(first[name])}" for name in names if name not in without and first[name] is not None)
    where = f"{first['stage']}{f' ({cell})' if cell else ''}"
    return (
        f"{first['metric']} of {first['task']} drifts in {where}: {values}{size}: the same model and questions came out"
        " otherwise, so compare nothing across what changed (the records of these cells tell hosts and versions)"
    )
