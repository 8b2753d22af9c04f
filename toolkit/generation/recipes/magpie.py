"""Instructions and answers that an aligned model writes by itself, given nothing (Magpie, arXiv 2406.08464).

The model reads what stands before a user's words and samples the words; then it answers each as a user's turn,
greedily. Writes a data set with the split `train`: `prompt`, `completion`, `gold` (the completion) and `ended` (the
answer came to its end), and `pre_query.json`: what the model read. `generate` with the recipes tags, rewards and
neighbours measures the rows; `prepare` with the data set `magpie` selects among them.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from toolkit.generation.models import Precision
from toolkit.stage import Artifact, Context

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from toolkit.generation.engine import Answer
    from toolkit.generation.rows import Row

STYLES = {"air": 3_000_000, "pro": 1_000_000}  # instructions drawn: from the 8B model, from the 70B one
ASSISTANT = ("assistant", "Assistant")  # a model that goes on without special tokens names the next speaker


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Either rows, how many instructions are drawn, or style, for as many as the paper's sets: air 3 M, pro 1 M.

    family: whose text before a user's words is taken; None for what the tokenizer's chat template says.
    temperature, top_p, seed: of the instructions. stop_at_newline: an instruction is one line.
    max_query_tokens, max_answer_tokens: what is longer is cut (and counted).
    """

    recipe: str
    rows: int | None = None
    style: Literal["air", "pro"] | None = None
    family: str | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    stop_at_newline: bool = True
    max_query_tokens: int = 512
    max_answer_tokens: int = 2048
    precision: Precision = "fp32"
    engine: Literal["hf", "vllm"] = "hf"

    def __post_init__(self) -> None:
        if (self.rows is None) == (self.style is None):
            raise ValueError(f"give either rows or style (rows is {self.rows!r}, style is {self.style!r})")
        for name, least in (("rows", 1), ("max_query_tokens", 1), ("max_answer_tokens", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; instructions are sampled, so it must be above 0")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """model: an aligned model with its tokenizer, whose chat template the answers need."""

    model: Artifact


def run(spec: Spec, inputs: Inputs, out: Path, ctx: Context) -> dict[str, Any]:
    """Fill `out/data`; metrics count rows, empty instructions (which get no answer), tokens and what was cut."""
    from toolkit.checkpoints.folders import load_tokenizer
    from toolkit.data.splits import Splits
    from toolkit.generation.answers import Asker
    from toolkit.generation.engine import Decoding
    from toolkit.generation.prequery import pre_query, special_ids

    tokenizer = load_tokenizer(inputs.model.path)
    before = pre_query(tokenizer, spec.family)
    asker = Asker(model=inputs.model.path, precision=spec.precision, engine=spec.engine, ctx=ctx)
    count = spec.rows if spec.rows is not None else STYLES[str(spec.style)]
    stop = (*ASSISTANT, *(["\n"] if spec.stop_at_newline else []))
    drawn = Decoding(
        max_new_tokens=spec.max_query_tokens, temperature=spec.temperature, top_p=spec.top_p, seed=spec.seed, stop=stop,
        ends=special_ids(tokenizer),
    )  # fmt: skip
    queries = asker.ask(
        _blank(spec, inputs.model.path, tokenizer, before.text, count), drawn, "queries", total=2 * count, unit="text"
    )
    asked = {query.id: query.text.strip() for query in queries if query.text.strip()}
    if not asked:
        raise ValueError(f"all {count} instructions are empty: the model writes nothing after {before.text!r}")
    prompts, cut = _turns(spec, inputs.model.path, tokenizer, asked)
    greedy = Decoding(max_new_tokens=spec.max_answer_tokens)
    answers = asker.ask(prompts, greedy, "answers", before=2 * count - len(asked), total=2 * count, unit="text")
    completions = [answer.text.strip() for answer in answers]
    splits = Splits(out / "data")
    splits.add(
        "train",
        {
            "prompt": list(asked.values()),
            "completion": completions,
            "gold": completions,
            "ended": [answer.ended for answer in answers],
        },
    )
    rows = splits.finish()["train"]
    words = {"pre_query": before.text, "source": before.source, "stop": list(stop), "stop_ids": list(drawn.ends)}
    (out / "pre_query.json").write_text(json.dumps(words, indent=1) + "\n")
    return {"rows": rows, "empty": count - rows, "truncated_prompts": cut, **_counts(queries, answers)}


def _blank(spec: Spec, model: Path, tokenizer: "PreTrainedTokenizerBase", before: str, count: int) -> "list[Row]":
    """The same tokens, once for each instruction.

    Raises:
        ValueError: an instruction and its answer of the largest size would not fit into the model's context.
    """
    from toolkit.checkpoints.check import read_config
    from toolkit.generation.models import context_length
    from toolkit.generation.rows import Row, encode, tokenize

    context = context_length(read_config(model))
    around = len(tokenize(tokenizer, ["x"], "chat")[0].tokens)
    if context is not None and around + spec.max_query_tokens + spec.max_answer_tokens > context:
        raise ValueError(
            f"max_query_tokens {spec.max_query_tokens}, max_answer_tokens {spec.max_answer_tokens} and the {around}"
            f" tokens around them exceed the model's context of {context}; lower one of them"
        )
    tokens = encode(tokenizer, [before], chat=True)[0].tokens
    return [Row(id=i, tokens=tokens) for i in range(count)]


def _turns(
    spec: Spec, model: Path, tokenizer: "PreTrainedTokenizerBase", asked: dict[int, str]
) -> "tuple[list[Row], int]":
    """Each instruction as a user's turn; one that has more tokens when it is read than it was written in may be cut."""
    from toolkit.checkpoints.check import read_config
    from toolkit.generation.models import context_length
    from toolkit.generation.rows import Row, fit, tokenize

    turns = tokenize(tokenizer, list(asked.values()), "chat")
    rows = [Row(id=i, tokens=row.tokens) for i, row in zip(asked, turns, strict=True)]
    return fit(rows, context_length(read_config(model)), spec.max_answer_tokens, "truncate")


def _counts(queries: "list[Answer]", answers: "list[Answer]") -> dict[str, int]:
    return {
        "query_tokens": sum(query.tokens for query in queries),
        "answer_tokens": sum(answer.tokens for answer in answers),
        "unfinished_queries": sum(not query.ended for query in queries),
        "unfinished_answers": sum(not answer.ended for answer in answers),
    }
