"""XL-Sum, the English part: a news article of the BBC in one or two sentences."""

from typing import Any

from toolkit.data import tasks
from toolkit.data.sources import Source
from toolkit.data.splits import Splits
from toolkit.data.tasks import About, Inputs, Row, Spec
from toolkit.stage import Context

ABOUT = About(
    source="Hasan et al. 2021, arXiv 2106.13822",
    licence="CC BY-NC-SA 4.0",
    metric="ROUGE-L",
    templates="summary",
    repo="csebuetnlp/xlsum",
    revision="refs/convert/parquet",
    files=("english/*/*.parquet",),
    config="english",
    rows={"train": 306522, "validation": 11535, "test": 11535},
)


def row(source: Source) -> Row:
    """`document`, `summary`."""
    texts = {"document": source.text("text", "document"), "summary": source.text("summary")}
    return {**texts, "gold": texts["summary"]}


def fill(spec: Spec, inputs: Inputs, splits: Splits, ctx: Context) -> dict[str, Any]:
    """Metrics: see `toolkit.data.tasks.fill`."""
    return tasks.fill(ABOUT, row, spec, inputs, splits, ctx)
