"""PAWS: are the two sentences paraphrases? They share most words, so that overlap does not tell."""

from typing import Any

from toolkit.data import tasks
from toolkit.data.sources import Source
from toolkit.data.splits import Splits
from toolkit.data.tasks import About, Inputs, Row, Spec
from toolkit.stage import Context

YES = ["no", "yes"]  # in the order of the labels, 0 and 1
ABOUT = About(
    source="Zhang et al. 2019, arXiv 1904.01130",
    licence="free for any purpose, attribution asked for",
    metric="accuracy",
    templates="paraphrase",
    repo="google-research-datasets/paws",
    files=("labeled_final/*.parquet",),
    config="labeled_final",
    rows={"train": 49401, "validation": 8000, "test": 8000},
)


def row(source: Source) -> Row:
    """`sentence1`, `sentence2`."""
    texts = {"sentence1": source.text("sentence1"), "sentence2": source.text("sentence2")}
    return {**texts, "choices": YES, "gold_index": source.label(YES)}


def fill(spec: Spec, inputs: Inputs, splits: Splits, ctx: Context) -> dict[str, Any]:
    """Metrics: see `toolkit.data.tasks.fill`."""
    return tasks.fill(ABOUT, row, spec, inputs, splits, ctx)
