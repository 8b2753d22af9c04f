"""QQP: do two questions from Quora ask the same? The test split has no labels: every one of them is -1."""

from typing import Any

from toolkit.data import tasks
from toolkit.data.datasets.paws import YES
from toolkit.data.sources import Source
from toolkit.data.splits import Splits
from toolkit.data.tasks import About, Inputs, Row, Spec
from toolkit.stage import Context

LABELS = ["not_duplicate", "duplicate"]
ABOUT = About(
    source="Quora 2017, as a part of GLUE, arXiv 1804.07461",
    licence="Quora's terms: not for commercial use",
    metric="accuracy",
    templates="paraphrase",
    repo="nyu-mll/glue",
    files=("qqp/*.parquet",),
    config="qqp",
    rows={"train": 363846, "validation": 40430},
    unlabelled=("test",),
)


def row(source: Source) -> Row:
    """`sentence1`, `sentence2`."""
    texts = {
        "sentence1": source.text("question1", "text1", "sentence1"),
        "sentence2": source.text("question2", "text2", "sentence2"),
    }
    return {**texts, "choices": YES, "gold_index": source.label(LABELS)}


def fill(spec: Spec, inputs: Inputs, splits: Splits, ctx: Context) -> dict[str, Any]:
    """Metrics: see `toolkit.data.tasks.fill`."""
    return tasks.fill(ABOUT, row, spec, inputs, splits, ctx)
