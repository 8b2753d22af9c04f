"""WinoGrande XL: which of two words belongs in the blank of a sentence? The test split has no labels."""

from typing import Any

from toolkit.data import tasks
from toolkit.data.sources import Source
from toolkit.data.splits import Splits
from toolkit.data.tasks import About, Inputs, Row, Spec
from toolkit.stage import Context

ABOUT = About(
    source="Sakaguchi et al. 2019, arXiv 1907.10641",
    licence="CC BY 4.0",
    metric="accuracy",
    templates="blank",
    repo="allenai/winogrande",
    revision="refs/convert/parquet",
    files=("winogrande_xl/*/*.parquet",),
    config="winogrande_xl",
    rows={"train": 40398, "validation": 1267},
    unlabelled=("test",),
)


def row(source: Source) -> Row:
    """`sentence` with `_` for the blank, `before` and `after` it, `question` (the sentence)."""
    sentence = source.text("sentence")
    before, _, after = sentence.partition("_")
    texts = {"sentence": sentence, "question": sentence, "before": before.strip(), "after": after.strip()}
    options = [source.text("option1"), source.text("option2")]
    return {**texts, "choices": options, "gold_index": source.label(["option1", "option2"], "answer", first=1)}


def fill(spec: Spec, inputs: Inputs, splits: Splits, ctx: Context) -> dict[str, Any]:
    """Metrics: see `toolkit.data.tasks.fill`."""
    return tasks.fill(ABOUT, row, spec, inputs, splits, ctx)
