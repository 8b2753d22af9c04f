"""BoolQ: yes or no to a question about a passage."""

from typing import Any

from toolkit.data import tasks
from toolkit.data.datasets.paws import YES
from toolkit.data.sources import Source
from toolkit.data.splits import Splits
from toolkit.data.tasks import About, Inputs, Row, Spec
from toolkit.stage import Context

ABOUT = About(
    source="Clark et al. 2019, arXiv 1905.10044",
    licence="CC BY-SA 3.0",
    metric="accuracy",
    templates="boolq",
    repo="google/boolq",
    files=("data/*.parquet",),
    rows={"train": 9427, "validation": 3270},
    unlabelled=("test",),
)


def row(source: Source) -> Row:
    """`passage`, `asked` (the question), `question` (after the passage)."""
    passage, asked = source.text("passage"), source.text("question").rstrip("?") + "?"
    texts = {"passage": passage, "asked": asked, "question": f"{passage}\n{asked}"}
    return {**texts, "choices": YES, "gold_index": source.label(YES, "answer", "label")}


def fill(spec: Spec, inputs: Inputs, splits: Splits, ctx: Context) -> dict[str, Any]:
    """Metrics: see `toolkit.data.tasks.fill`."""
    return tasks.fill(ABOUT, row, spec, inputs, splits, ctx)
