"""OpenBookQA: questions of elementary science that a given fact and common sense answer, with four answers."""

from typing import Any

from toolkit.data import tasks
from toolkit.data.datasets.arc_easy import listed
from toolkit.data.sources import Source
from toolkit.data.splits import Splits
from toolkit.data.tasks import About, Inputs, Row, Spec
from toolkit.stage import Context

ABOUT = About(
    source="Mihaylov et al. 2018, arXiv 1809.02789",
    licence="none stated",
    metric="accuracy",
    templates="choice",
    repo="allenai/openbookqa",
    files=("main/*.parquet",),
    config="main",
    rows={"train": 4957, "validation": 500, "test": 500},
)


def row(source: Source) -> Row:
    """`question`."""
    choices, names = listed(source)
    question = source.text("question_stem", "question")
    return {"question": question, "choices": choices, "gold_index": source.label(names, "answerKey")}


def fill(spec: Spec, inputs: Inputs, splits: Splits, ctx: Context) -> dict[str, Any]:
    """Metrics: see `toolkit.data.tasks.fill`."""
    return tasks.fill(ABOUT, row, spec, inputs, splits, ctx)
