"""TULU-v2: conversations from a dozen instruction sets. The last turn of the assistant is the completion, all before
it the prompt, as `toolkit.data.templates.conversation` writes it; conversations that do not end in an answer are left
out.
"""

from typing import Any

from toolkit.data import tasks
from toolkit.data.sources import Source
from toolkit.data.splits import Splits
from toolkit.data.tasks import About, Inputs, Row, Spec
from toolkit.data.templates import conversation
from toolkit.stage import Context

ABOUT = About(
    source="Ivison et al. 2023, arXiv 2311.10702",
    licence="ODC-BY, with those of its parts",
    metric="none: it is trained on",
    templates="conversation",
    repo="allenai/tulu-v2-sft-mixture",
    files=("data/*.parquet",),
    rows={"train": 326154},
)


def row(source: Source) -> Row:
    """`part` (the set it comes from), `conversation` (up to `Assistant:`), `reply`."""
    turns = [(message["role"], message["content"].strip()) for message in source.values.get("messages") or ()]
    while turns and turns[-1][0] != "assistant":
        turns.pop()
    said, reply = conversation(turns) if turns else ("", "")
    return {
        "part": str(source.values.get("dataset", "")),
        "conversation": said,
        "reply": reply.strip(),
        "gold": reply.strip(),
    }


def fill(spec: Spec, inputs: Inputs, splits: Splits, ctx: Context) -> dict[str, Any]:
    """Metrics: see `toolkit.data.tasks.fill`."""
    return tasks.fill(ABOUT, row, spec, inputs, splits, ctx)
