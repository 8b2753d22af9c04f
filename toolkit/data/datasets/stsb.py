"""STS-B: how alike are two sentences, from 0 to 5? As a paraphrase task (arXiv 2408.06663): yes above 3.5. The test
split has no scores: every one of them is -1.
"""

from typing import Any

from toolkit.data import tasks
from toolkit.data.datasets.paws import YES
from toolkit.data.sources import Source
from toolkit.data.splits import Splits
from toolkit.data.tasks import About, Inputs, Row, Spec
from toolkit.stage import Context

ALIKE = 3.5
ABOUT = About(
    source="Cer et al. 2017, arXiv 1708.00055, as a part of GLUE",
    licence="CC BY-SA 4.0",
    metric="accuracy",
    templates="paraphrase",
    repo="nyu-mll/glue",
    files=("stsb/*.parquet",),
    config="stsb",
    rows={"train": 5749, "validation": 1500},
    unlabelled=("test",),
)


def row(source: Source) -> Row:
    """`sentence1`, `sentence2` and `score`."""
    score = source.number("label", "score")
    return {
        "sentence1": source.text("sentence1", "text1"),
        "sentence2": source.text("sentence2", "text2"),
        "score": score,
        "choices": YES,
        "gold_index": -1 if score < 0 else int(score > ALIKE),
    }


def fill(spec: Spec, inputs: Inputs, splits: Splits, ctx: Context) -> dict[str, Any]:
    """Metrics: see `toolkit.data.tasks.fill`."""
    return tasks.fill(ABOUT, row, spec, inputs, splits, ctx)
