"""SciQ as in Amuro & Char (arXiv 2408.06663): write the question that has these answers, the right one first. `sciq`
asks the questions.
"""

from typing import Any

from toolkit.data import tasks
from toolkit.data.sources import Source
from toolkit.data.splits import Splits
from toolkit.data.tasks import About, Inputs, Row, Spec
from toolkit.stage import Context

ABOUT = About(
    source="Welbl et al. 2017, arXiv 1707.06209",
    licence="CC BY-NC 3.0",
    metric="ROUGE-L",
    templates="question",
    repo="allenai/sciq",
    files=("data/*.parquet",),
    rows={"train": 11679, "validation": 1000, "test": 1000},
)


def row(source: Source) -> Row:
    """`context` (the support), `asked` (the question), `answer`, `answers` (the right one first) and `question`."""
    context, asked, answer = source.text("support"), source.text("question"), source.text("correct_answer")
    return {
        "context": context,
        "asked": asked,
        "answers": [answer, *(source.text(f"distractor{i}") for i in (1, 2, 3))],
        "answer": answer,
        "question": f"{context}\n{asked}".strip(),
        "gold": asked,
    }


def fill(spec: Spec, inputs: Inputs, splits: Splits, ctx: Context) -> dict[str, Any]:
    """Metrics: see `toolkit.data.tasks.fill`."""
    return tasks.fill(ABOUT, row, spec, inputs, splits, ctx)
