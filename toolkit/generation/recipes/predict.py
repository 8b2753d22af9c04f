"""Answers of a model to the prompts of one split, greedy or sampled.

Writes `predictions.parquet`, in the order of the split: id (row index in the split), prompt, prediction, gold, and the
split's `task` and `attribute` columns where it has them.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from toolkit.generation.models import Precision
from toolkit.generation.rows import Template
from toolkit.stage import Artifact, Context, Interrupted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datasets import Dataset

    from toolkit.generation.engine import Answer
    from toolkit.generation.rows import Row


@dataclass(frozen=True, kw_only=True)
class Spec:
    """temperature 0 is greedy and ignores the seed. top_p: nucleus sampling. limit: the first rows of the split only.

    stop: strings that end an answer. template: `plain` sends the prompt as it is, `chat` as one user turn.
    overlong: prompts that leave no room for max_new_tokens are refused, or lose tokens on the left (counted in the
    metrics). precision: type of the weights; only in fp32 is an answer independent of the batch it was made in.
    """

    recipe: str
    split: str
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    limit: int | None = None
    stop: tuple[str, ...] = ()
    template: Template = "plain"
    overlong: Literal["refuse", "truncate"] = "refuse"
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        for name, least in (("max_new_tokens", 1), ("limit", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name!r} must be at least {least}, not {value}")
        if self.temperature < 0:
            raise ValueError(f"'temperature' must be 0 (greedy) or more, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"'top_p' must be above 0 and at most 1, not {self.top_p}")
        if self.top_p < 1 and self.temperature == 0:
            raise ValueError(f"'top_p' {self.top_p} has no effect on greedy decoding; set 'temperature' above 0")
        if "" in self.stop:
            raise ValueError("'stop' has an empty string, which would end every answer at once")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """model: an HF folder. data: a data set with `prompt` and `gold` or `completion` columns."""

    model: Artifact
    data: Artifact


def run(spec: Spec, inputs: Inputs, out: Path, ctx: Context) -> dict[str, Any]:
    """Fill `out` with predictions.parquet; metrics count rows, tokens, and answers that did not end by themselves."""
    from toolkit.data.splits import open_split
    from toolkit.generation import rows, shards
    from toolkit.generation.engine import Decoding, Engine, batches
    from toolkit.generation.models import context_length, load

    split = open_split(inputs.data.path, spec.split, ("prompt",), spec.limit)
    gold = rows.gold_column(split)
    model, tokenizer = load(inputs.model.path, spec.precision, ctx.resources.threads)
    prompts, cut = rows.fit(
        rows.tokenize(tokenizer, split["prompt"][:], spec.template),
        context_length(model),
        spec.max_new_tokens,
        spec.overlong,
    )
    fields = ("max_new_tokens", "temperature", "top_p", "seed", "stop")
    engine = Engine(model, tokenizer, Decoding(**{name: getattr(spec, name) for name in fields}))
    budget = ctx.resources.batch_tokens >> ctx.resources.halvings
    work = shards.cut(batches(prompts, budget, spec.max_new_tokens), spec.max_new_tokens)
    answers = shards.fill(ctx.state / "shards", work, engine.answer, _Meter(ctx, len(prompts)))
    _write(out / "predictions.parquet", split, gold, answers)
    return _metrics(prompts, answers, cut)


class _Meter:
    """Reports progress and speed; raises `Interrupted` between batches when the worker has to stop."""

    def __init__(self, ctx: Context, total: int) -> None:
        self.ctx, self.total, self.done, self.tokens, self.start = ctx, total, 0, 0, time.monotonic()

    def __call__(self, answers: "list[Answer]", cached: bool) -> None:
        self.done += len(answers)
        self.tokens += 0 if cached else sum(a.tokens for a in answers)
        seconds = max(time.monotonic() - self.start, 1e-9)
        self.ctx.progress(self.done, self.total, unit="row", tokens_per_second=self.tokens / seconds)
        if self.ctx.stop_requested and self.done < self.total:
            raise Interrupted


def _write(path: Path, split: "Dataset", gold: str, answers: "Sequence[Answer]") -> None:
    import pyarrow as pa

    from toolkit.generation.rows import PASSED
    from toolkit.generation.shards import write

    columns: dict[str, Any] = {
        "id": pa.array([a.id for a in answers], pa.int64()),
        "prompt": pa.array(split["prompt"][:], pa.string()),
        "prediction": pa.array([a.text for a in answers], pa.string()),
        "gold": pa.array(split[gold][:], pa.string()),
    }
    columns |= {name: pa.array(split[name][:]) for name in PASSED if name in split.column_names}
    write(path, pa.table(columns), compression="zstd")


def _metrics(prompts: "Sequence[Row]", answers: "Sequence[Answer]", cut: int) -> dict[str, Any]:
    return {
        "rows": len(answers),
        "prompt_tokens": sum(len(row.tokens) for row in prompts),
        "new_tokens": sum(a.tokens for a in answers),
        "unfinished": sum(not a.ended for a in answers),
        "truncated_prompts": cut,
    }
