"""Stanford Alpaca, or any rows of its fields: an instruction, maybe an input, and an answer that text-davinci-003
wrote. Rows without an answer are left out, and counted as unlabelled.
"""

from typing import Any

from toolkit.data import tasks
from toolkit.data.sources import Source
from toolkit.data.splits import Splits
from toolkit.data.tasks import About, Inputs, Row, Spec
from toolkit.stage import Context

ABOUT = About(
    source="Taori et al. 2023, github.com/tatsu-lab/stanford_alpaca",
    licence="CC BY-NC 4.0",
    metric="ROUGE-L",
    templates="instruction",
    repo="tatsu-lab/alpaca",
    files=("data/*.parquet",),
    rows={"train": 52002},
)


def row(source: Source) -> Row:
    """`instruction`, `input`, `output`."""
    texts = {name: source.text(name) for name in ("instruction", "input", "output")}
    return {**texts, "gold": texts["output"]}


def fill(spec: Spec, inputs: Inputs, splits: Splits, ctx: Context) -> dict[str, Any]:
    """Metrics: see `toolkit.data.tasks.fill`."""
    return tasks.fill(ABOUT, row, spec, inputs, splits, ctx)
