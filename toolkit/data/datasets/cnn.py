"""CNN/DailyMail 3.0.0: a news article in some three highlights."""

from typing import Any

from toolkit.data import tasks
from toolkit.data.sources import Source
from toolkit.data.splits import Splits
from toolkit.data.tasks import About, Inputs, Row, Spec
from toolkit.stage import Context

ABOUT = About(
    source="See et al. 2017, arXiv 1704.04368",
    licence="Apache-2.0",
    metric="ROUGE-L",
    templates="summary",
    repo="abisee/cnn_dailymail",
    files=("3.0.0/*.parquet",),
    config="3.0.0",
    rows={"train": 287113, "validation": 13368, "test": 11490},
)


def row(source: Source) -> Row:
    """`document`, `summary`."""
    texts = {"document": source.text("article", "document"), "summary": source.text("highlights", "summary")}
    return {**texts, "gold": texts["summary"]}


def fill(spec: Spec, inputs: Inputs, splits: Splits, ctx: Context) -> dict[str, Any]:
    """Metrics: see `toolkit.data.tasks.fill`."""
    return tasks.fill(ABOUT, row, spec, inputs, splits, ctx)
