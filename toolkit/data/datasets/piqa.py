"""PIQA: which of two ways reaches a physical goal? The labels of the test split were not published; local files have
them beside the rows (`valid.jsonl`, `valid-labels.lst`).
"""

from typing import Any

from toolkit.data import tasks
from toolkit.data.sources import Source
from toolkit.data.splits import Splits
from toolkit.data.tasks import About, Inputs, Row, Spec
from toolkit.stage import Context

ABOUT = About(
    source="Bisk et al. 2020, arXiv 1911.11641",
    licence="AFL-3.0",
    metric="accuracy",
    templates="goal",
    repo="baber/piqa",
    rows={"train": 16113, "validation": 1838},
    unlabelled=("test",),
)


def row(source: Source) -> Row:
    """`goal`, `question` (the same)."""
    goal, ways = source.text("goal"), [source.text("sol1"), source.text("sol2")]
    return {"goal": goal, "question": goal, "choices": ways, "gold_index": source.label(["sol1", "sol2"])}


def fill(spec: Spec, inputs: Inputs, splits: Splits, ctx: Context) -> dict[str, Any]:
    """Metrics: see `toolkit.data.tasks.fill`."""
    return tasks.fill(ABOUT, row, spec, inputs, splits, ctx)
