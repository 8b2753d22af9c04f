"""SocialIQa as in Amuro & Char (arXiv 2408.06663): write the question that has these three answers in this situation.
The template `answer` asks it the other way round. The test split was not published.
"""

from typing import Any

from toolkit.data import tasks
from toolkit.data.sources import Source
from toolkit.data.splits import Splits
from toolkit.data.tasks import About, Inputs, Row, Spec
from toolkit.stage import Context

ABOUT = About(
    source="Sap et al. 2019, arXiv 1904.09728",
    licence="CC BY 4.0",
    metric="ROUGE-L",
    templates="question",
    repo="allenai/social_i_qa",
    revision="refs/convert/parquet",
    files=("default/*/*.parquet",),
    config="default",
    rows={"train": 33410, "validation": 1954},
)


def row(source: Source) -> Row:
    """`context`, `asked` (the question), `answer` (the right one), `answers` (all) and `question`, with its context."""
    context, asked = source.text("context"), source.text("question")
    answers = [source.text(f"answer{letter}") for letter in "ABC"]
    right = source.label(["A", "B", "C"], "label", "correct", first=1)
    return {
        "context": context,
        "asked": asked,
        "answers": answers,
        "answer": answers[right],
        "question": f"{context} {asked}",
        "gold": asked if right >= 0 else "",
    }


def fill(spec: Spec, inputs: Inputs, splits: Splits, ctx: Context) -> dict[str, Any]:
    """Metrics: see `toolkit.data.tasks.fill`."""
    return tasks.fill(ABOUT, row, spec, inputs, splits, ctx)
