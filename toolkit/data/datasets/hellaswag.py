"""HellaSwag: which of four endings goes on with the text? Headings of WikiHow in brackets are taken out, as is usual.
The test split has no labels.
"""

import re
from typing import Any

from toolkit.data import tasks
from toolkit.data.sources import Source
from toolkit.data.splits import Splits
from toolkit.data.tasks import About, Inputs, Row, Spec
from toolkit.stage import Context

ABOUT = About(
    source="Zellers et al. 2019, arXiv 1905.07830",
    licence="MIT",
    metric="accuracy (by length of the ending)",
    templates="ending",
    repo="Rowan/hellaswag",
    files=("data/*.parquet",),
    rows={"train": 39905, "validation": 10042},
    unlabelled=("test",),
)


def row(source: Source) -> Row:
    """`context` (the activity, what happened, and how the ending begins), `question` (the same)."""
    begun = source.text("ctx_b")
    told = f"{source.text('activity_label')}: {source.text('ctx_a')} {begun[:1].upper()}{begun[1:].lower()}"
    context = _plain(told)
    endings = [_plain(ending) for ending in source.texts("endings")]
    return {"context": context, "question": context, "choices": endings, "gold_index": source.label("0123")}


def _plain(text: str) -> str:
    return re.sub(r"\[.*?\]", "", text.replace(" [title]", ". ")).replace("  ", " ").strip()


def fill(spec: Spec, inputs: Inputs, splits: Splits, ctx: Context) -> dict[str, Any]:
    """Metrics: see `toolkit.data.tasks.fill`."""
    return tasks.fill(ABOUT, row, spec, inputs, splits, ctx)
