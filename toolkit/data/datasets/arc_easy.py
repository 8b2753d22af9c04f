"""ARC, the easy part: questions of school science with three to five answers."""

from typing import Any

from toolkit.data import tasks
from toolkit.data.sources import Source
from toolkit.data.splits import Splits
from toolkit.data.tasks import About, Inputs, Row, Spec
from toolkit.stage import Context

ABOUT = About(
    source="Clark et al. 2018, arXiv 1803.05457",
    licence="CC BY-SA 4.0",
    metric="accuracy",
    templates="choice",
    repo="allenai/ai2_arc",
    files=("ARC-Easy/*.parquet",),
    config="ARC-Easy",
    rows={"train": 2251, "validation": 570, "test": 2376},
)


def listed(source: Source) -> tuple[list[str], list[str]]:
    """The answers and their names (A, B, ... or 1, 2, ...), which stand in a field `choices` of two lists."""
    held = source.values.get("choices")
    if not isinstance(held, dict):
        raise ValueError(f"{source.place}: field 'choices' must hold text and label lists, not {held!r}")
    inner = Source(place=source.place, values=held)
    return inner.texts("text"), inner.texts("label")


def row(source: Source) -> Row:
    """`question`."""
    choices, names = listed(source)
    return {"question": source.text("question"), "choices": choices, "gold_index": source.label(names, "answerKey")}


def fill(spec: Spec, inputs: Inputs, splits: Splits, ctx: Context) -> dict[str, Any]:
    """Metrics: see `toolkit.data.tasks.fill`."""
    return tasks.fill(ABOUT, row, spec, inputs, splits, ctx)
