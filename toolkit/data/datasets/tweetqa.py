"""TweetQA as in Amuro & Char (arXiv 2408.06663): write the question about a tweet that has this answer. The test split
has no answers.
"""

from typing import Any

from toolkit.data import tasks
from toolkit.data.sources import Source
from toolkit.data.splits import Splits
from toolkit.data.tasks import About, Inputs, Row, Spec
from toolkit.stage import Context

ABOUT = About(
    source="Xiong et al. 2019, arXiv 1907.06292",
    licence="CC BY-SA 4.0",
    metric="ROUGE-L",
    templates="question",
    repo="ucsbnlp/tweet_qa",
    revision="refs/convert/parquet",
    files=("default/*/*.parquet",),
    config="default",
    rows={"train": 10692, "validation": 1086},
    unlabelled=("test",),
)


def row(source: Source) -> Row:
    """`context` (the tweet), `asked` (the question), `answer`, `answers` (the first one), `accepted` and `question`."""
    context, asked, accepted = source.text("Tweet"), source.text("Question"), source.texts("Answer")
    answer = accepted[0] if accepted else ""
    return {
        "context": context,
        "asked": asked,
        "answers": [answer],
        "answer": answer,
        "accepted": accepted,
        "question": f"{context}\n{asked}",
        "gold": asked if answer else "",
    }


def fill(spec: Spec, inputs: Inputs, splits: Splits, ctx: Context) -> dict[str, Any]:
    """Metrics: see `toolkit.data.tasks.fill`."""
    return tasks.fill(ABOUT, row, spec, inputs, splits, ctx)
