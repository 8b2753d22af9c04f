"""XSum: a news article of the BBC in one sentence."""

from typing import Any

from toolkit.data import tasks
from toolkit.data.sources import Source
from toolkit.data.splits import Splits
from toolkit.data.tasks import About, Inputs, Row, Spec
from toolkit.stage import Context

ABOUT = About(
    source="Narayan et al. 2018, arXiv 1808.08745",
    licence="none stated; the articles are the BBC's",
    metric="ROUGE-L",
    templates="summary",
    repo="EdinburghNLP/xsum",
    revision="refs/convert/parquet",
    files=("default/*/*.parquet",),
    config="default",
    rows={"train": 204045, "validation": 11332, "test": 11334},
)


def row(source: Source) -> Row:
    """`document`, `summary`."""
    texts = {"document": source.text("document"), "summary": source.text("summary")}
    return {**texts, "gold": texts["summary"]}


def fill(spec: Spec, inputs: Inputs, splits: Splits, ctx: Context) -> dict[str, Any]:
    """Metrics: see `toolkit.data.tasks.fill`."""
    return tasks.fill(ABOUT, row, spec, inputs, splits, ctx)
