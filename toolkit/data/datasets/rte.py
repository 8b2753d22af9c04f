"""RTE: does the first text entail the second? The labels are entailment and not_entailment; the second is neither
"neutral" nor "contradiction", so a model that was tuned on three labels is right with any answer but entailment:
`accepted` has all that count. The test split has no labels.
"""

from typing import Any

from toolkit.data import tasks
from toolkit.data.sources import Source
from toolkit.data.splits import Splits
from toolkit.data.tasks import About, Inputs, Row, Spec
from toolkit.stage import Context

LABELS = ["entailment", "not_entailment"]
ABOUT = About(
    source="Dagan et al. 2005 and later, as a part of GLUE, arXiv 1804.07461",
    licence="none stated (GLUE)",
    metric="accuracy",
    templates="rte",
    repo="nyu-mll/glue",
    files=("rte/*.parquet",),
    config="rte",
    rows={"train": 2490, "validation": 277},
    unlabelled=("test",),
)


def row(source: Source) -> Row:
    """`premise`, `hypothesis`, and `accepted`: the answers that count as right."""
    index = source.label(LABELS)
    return {
        "premise": source.text("sentence1", "premise"),
        "hypothesis": source.text("sentence2", "hypothesis"),
        "choices": LABELS,
        "gold_index": index,
        "accepted": LABELS[:1] if index == 0 else [LABELS[1], "neutral", "contradiction"],
    }


def fill(spec: Spec, inputs: Inputs, splits: Splits, ctx: Context) -> dict[str, Any]:
    """Metrics: see `toolkit.data.tasks.fill`."""
    return tasks.fill(ABOUT, row, spec, inputs, splits, ctx)
