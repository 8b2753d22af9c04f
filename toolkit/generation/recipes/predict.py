"""Answers of a model to the prompts of one split, greedy or sampled.

Writes `predictions.parquet`, in the order of the split: id (row index in the split), prompt, prediction, gold, and the
split's `task` and `attribute` columns where it has them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from toolkit.generation.models import Precision
from toolkit.generation.rows import Template, TrailingSpace
from toolkit.stage import Artifact, Context

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
    metrics). trailing_space: prompts that end in a space (counted too) are kept, lose it, or are refused.
    precision: type of the weights; only in fp32 is an answer independent of the batch it was made in.
    engine: what runs the model; `vllm` needs `vllm` in the resources.
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
    trailing_space: TrailingSpace = "keep"
    engine: Literal["hf", "vllm"] = "hf"

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
    from toolkit.checkpoints.check import read_config
    from toolkit.checkpoints.folders import load_tokenizer
    from toolkit.data.splits import open_split
    from toolkit.generation import rows
    from toolkit.generation.answers import Asker
    from toolkit.generation.engine import Decoding
    from toolkit.generation.models import context_length

    split = open_split(inputs.data.path, spec.split, ("prompt",), spec.limit)
    gold = rows.gold_column(split)
    context = context_length(read_config(inputs.model.path))
    asker = Asker(model=inputs.model.path, precision=spec.precision, engine=spec.engine, ctx=ctx)
    tokenizer = load_tokenizer(inputs.model.path)
    texts, spaced = rows.end_spaces(rows.render(tokenizer, split["prompt"][:], spec.template), spec.trailing_space)
    encoded = rows.encode(tokenizer, texts, chat=spec.template == "chat")
    prompts, cut = rows.fit(encoded, context, spec.max_new_tokens, spec.overlong)
    fields = ("max_new_tokens", "temperature", "top_p", "seed", "stop")
    answers = asker.ask(prompts, Decoding(**{name: getattr(spec, name) for name in fields}), "shards")
    _write(out / "predictions.parquet", split, gold, answers)
    return _metrics(prompts, answers) | {"truncated_prompts": cut, "prompts_ending_in_space": spaced}


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


def _metrics(prompts: "Sequence[Row]", answers: "Sequence[Answer]") -> dict[str, Any]:
    return {
        "rows": len(answers),
        "prompt_tokens": sum(len(row.tokens) for row in prompts),
        "new_tokens": sum(a.tokens for a in answers),
        "unfinished": sum(not a.ended for a in answers),
    }
