"""SciQ: questions of science exams with four answers and a supporting text. The answers are sorted by their letters:
as published, the right one has a place of its own.
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
    metric="accuracy",
    templates="choice",
    repo="allenai/sciq",
    files=("data/*.parquet",),
    rows={"train": 11679, "validation": 1000, "test": 1000},
)


def row(source: Source) -> Row:
    """`support`, `asked` (the question), `question` (after the support)."""
    support, asked, right = source.text("support"), source.text("question"), source.text("correct_answer")
    choices = sorted([right, *(source.text(f"distractor{i}") for i in (1, 2, 3))])
    return {
        "support": support,
        "asked": asked,
        "question": f"{support}\n{asked}".strip(),
        "choices": choices,
        "gold_index": choices.index(right) if right else -1,
    }


def fill(spec: Spec, inputs: Inputs, splits: Splits, ctx: Context) -> dict[str, Any]:
    """Metrics: see `toolkit.data.tasks.fill`."""
    return tasks.fill(ABOUT, row, spec, inputs, splits, ctx)
