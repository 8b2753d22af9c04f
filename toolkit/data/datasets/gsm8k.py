"""GSM8K: word problems of grade school; the worked answer ends in `#### N`, with the calculator's notes (`<<2*3=6>>`)
taken out of `reasoning`.
"""

import re
from typing import Any

from toolkit.data import tasks
from toolkit.data.sources import Source
from toolkit.data.splits import Splits
from toolkit.data.tasks import About, Inputs, Row, Spec
from toolkit.stage import Context

ABOUT = About(
    source="Cobbe et al. 2021, arXiv 2110.14168",
    licence="MIT",
    metric="exact match of the number",
    templates="worked",
    repo="openai/gsm8k",
    files=("main/*.parquet",),
    config="main",
    rows={"train": 7473, "test": 1319},
)


def row(source: Source) -> Row:
    """`question`, `reasoning`, `answer` (the number without commas)."""
    reasoning, mark, number = source.text("answer").rpartition("####")
    if not mark:
        raise ValueError(f"{source.place}: the answer has no '#### N': {reasoning or number!r}")
    answer = number.strip().replace(",", "")
    steps = re.sub(r"<<.*?>>", "", reasoning).strip()
    return {"question": source.text("question"), "reasoning": steps, "answer": answer, "gold": answer}


def fill(spec: Spec, inputs: Inputs, splits: Splits, ctx: Context) -> dict[str, Any]:
    """Metrics: see `toolkit.data.tasks.fill`."""
    return tasks.fill(ABOUT, row, spec, inputs, splits, ctx)
