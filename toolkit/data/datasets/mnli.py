"""MNLI: does the premise entail the hypothesis, contradict it, or neither? Two validation splits, of the genres that
were trained on and of others. From its own repository or as a part of GLUE, whose test splits have no labels.
"""

from typing import Any

from toolkit.data import tasks
from toolkit.data.sources import Source
from toolkit.data.splits import Splits
from toolkit.data.tasks import About, Inputs, Row, Spec
from toolkit.stage import Context

NLI = ["entailment", "neutral", "contradiction"]
ABOUT = About(
    source="Williams et al. 2018, arXiv 1704.05426",
    licence="OANC, CC BY-SA 3.0, CC BY 3.0 (by genre)",
    metric="accuracy",
    templates="nli",
    repo="nyu-mll/glue",
    files=("mnli/*.parquet",),
    config="mnli",
    rows={"train": 392702, "validation_matched": 9815, "validation_mismatched": 9832},
    unlabelled=("test_matched", "test_mismatched"),
)


def row(source: Source) -> Row:
    """`premise`, `hypothesis`; -1 and "-" are rows on which the annotators did not agree."""
    texts = {"premise": source.text("premise"), "hypothesis": source.text("hypothesis")}
    return {**texts, "choices": NLI, "gold_index": source.label(NLI, "label", "gold_label")}


def fill(spec: Spec, inputs: Inputs, splits: Splits, ctx: Context) -> dict[str, Any]:
    """Metrics: see `toolkit.data.tasks.fill`."""
    return tasks.fill(ABOUT, row, spec, inputs, splits, ctx)
