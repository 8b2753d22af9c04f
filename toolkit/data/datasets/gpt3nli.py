"""GPT3NLI: pairs of sentences that GPT-3 wrote, with MNLI's three labels. There is one split; `shots` sets
demonstrations apart.
"""

from typing import Any

from toolkit.data import tasks
from toolkit.data.datasets.mnli import NLI
from toolkit.data.sources import Source
from toolkit.data.splits import Splits
from toolkit.data.tasks import About, Inputs, Row, Spec
from toolkit.stage import Context

ABOUT = About(
    source="gpt3-nli of K. Goel, github.com/krandiash/gpt3-nli",
    licence="none stated",
    metric="accuracy",
    templates="nli",
    repo="pietrolesci/gpt3_nli",
    files=("data/*.parquet",),
    rows={"train": 30000},
)


def row(source: Source) -> Row:
    """`premise`, `hypothesis`."""
    texts = {"premise": source.text("text_a", "premise"), "hypothesis": source.text("text_b", "hypothesis")}
    return {**texts, "choices": NLI, "gold_index": source.label(NLI)}


def fill(spec: Spec, inputs: Inputs, splits: Splits, ctx: Context) -> dict[str, Any]:
    """Metrics: see `toolkit.data.tasks.fill`."""
    return tasks.fill(ABOUT, row, spec, inputs, splits, ctx)
