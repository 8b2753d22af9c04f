"""What a judge model says of the instructions of a data set: quality, difficulty, kind of task (Magpie, arXiv
2406.08464).

Writes the same rows with columns for each tag: `input_quality` and `quality_explanation`; `intent`, `knowledge` and
`difficulty`; `task_category` and `other_task_category`. An answer that cannot be read leaves them empty.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from toolkit.generation.models import Precision
from toolkit.stage import Artifact, Context

Tag = Literal["quality", "difficulty", "category"]


@dataclass(frozen=True, kw_only=True)
class Spec:
    """tags: what is asked. An instruction that leaves the judge no room for max_new_tokens is not judged (counted)."""

    recipe: str
    split: str = "train"
    tags: tuple[Tag, ...] = ("quality", "difficulty", "category")
    max_new_tokens: int = 1024
    precision: Precision = "fp32"
    engine: Literal["hf", "vllm"] = "hf"

    def __post_init__(self) -> None:
        if not self.tags or len(set(self.tags)) < len(self.tags):
            raise ValueError(f"tags must name at least one and none twice, not {list(self.tags)}")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """model: the judge, with a chat template. data: rows with `prompt`."""

    model: Artifact
    data: Artifact


def run(spec: Spec, inputs: Inputs, out: Path, ctx: Context) -> dict[str, Any]:
    """Fill `out/data` with the split; metrics count what could not be judged or read, for each tag."""
    from toolkit.checkpoints.check import read_config
    from toolkit.checkpoints.folders import load_tokenizer
    from toolkit.data.splits import open_split
    from toolkit.generation import judging
    from toolkit.generation.answers import Asker
    from toolkit.generation.columns import add_columns
    from toolkit.generation.engine import Decoding
    from toolkit.generation.models import context_length
    from toolkit.generation.rows import encode, render

    rows = open_split(inputs.data.path, spec.split, ["prompt"])
    tokenizer = load_tokenizer(inputs.model.path)
    asker = Asker(model=inputs.model.path, precision=spec.precision, engine=spec.engine, ctx=ctx)
    room = (context_length(read_config(inputs.model.path)) or 1 << 62) - spec.max_new_tokens
    how = Decoding(max_new_tokens=spec.max_new_tokens, stop=(judging.CLOSING,), keep_stop=True)
    added: dict[str, list[Any]] = {}
    metrics: dict[str, Any] = {"rows": len(rows)}
    total = len(rows) * len(spec.tags)
    for number, tag in enumerate(spec.tags):
        turns = render(tokenizer, [judging.ask(tag, prompt) for prompt in rows["prompt"][:]], "chat")
        encoded = encode(tokenizer, [turn + judging.OPENING for turn in turns], chat=True)
        judged = [row for row in encoded if len(row.tokens) <= room]
        answers = asker.ask(judged, how, tag, before=number * len(rows), total=total)
        found = {answer.id: judging.parse(tag, answer.text) for answer in answers}
        for column in judging.columns(tag):
            added[column] = [found[i][column] if i in found else None for i in range(len(rows))]
        metrics[f"too_long_{tag}"] = len(rows) - len(judged)
        metrics[f"unread_{tag}"] = sum(None in values.values() for values in found.values())
    lists = {column for tag in spec.tags for column in judging.columns(tag) if column == "other_task_category"}
    add_columns(out, spec.split, rows, {c: (v, "strings" if c in lists else "string") for c, v in added.items()})
    return metrics
