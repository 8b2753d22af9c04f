"""ARC, the part that retrieval and co-occurrence get wrong: questions of school science with three to five answers."""

from typing import Any

from toolkit.data import tasks
from toolkit.data.datasets.arc_easy import listed
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
    files=("ARC-Challenge/*.parquet",),
    config="ARC-Challenge",
    rows={"train": 1119, "validation": 299, "test": 1172},
)


def row(source: Source) -> Row:
    """`question`."""
    choices, names = listed(source)
    return {"question": source.text("question"), "choices": choices, "gold_index": source.label(names, "answerKey")}


def fill(spec: Spec, inputs: Inputs, splits: Splits, ctx: Context) -> dict[str, Any]:
    """Metrics: see `toolkit.data.tasks.fill`."""
    return tasks.fill(ABOUT, row, spec, inputs, splits, ctx)
