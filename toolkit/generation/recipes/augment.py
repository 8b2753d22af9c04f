"""Texts with their pairs as an instruction-augmented corpus, mixed with what else is trained on (arXiv 2406.14491).

A chain of `instruct_synthesis` becomes one document in a layout of its own. From scratch, raw text is added unchanged;
in continual pre-training, general instructions, as many tokens of them as of the corpus. Writes the split `train`:
`text` and `kind` (augmented, raw or general), in random order. All of it is learned: `prepare` packs it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from toolkit.stage import Artifact, Context

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH = 1000


@dataclass(frozen=True, kw_only=True)
class Spec:
    """raw_split, raw_field: of the input `raw`, without its first raw_skip rows (of which `data` was made).

    general_split: of `general`, rows with `prompt` and `completion`, put together as they are or in the tokenizer's
    chat template. general_ratio: tokens of `general` for each token of the rest, drawn in random order; null for all of
    it. seed: of layouts, draws and order.
    """

    recipe: str
    raw_split: str = "train"
    raw_field: str = "text"
    raw_skip: int = 0
    general_split: str = "train"
    general_template: Literal["plain", "chat"] = "plain"
    general_ratio: float | None = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.general_ratio is not None and not self.general_ratio > 0:
            raise ValueError(f"general_ratio is {self.general_ratio}; it must be above 0, or null for all rows")
        if self.raw_skip < 0:
            raise ValueError(f"raw_skip is {self.raw_skip}; it must be at least 0")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """data: of instruct_synthesis. raw: texts. general: instructions, which need the tokenizer. At least one."""

    data: Artifact | None = None
    raw: Artifact | None = None
    general: Artifact | None = None
    tokenizer: Artifact | None = None


def run(spec: Spec, inputs: Inputs, out: Path, ctx: Context) -> dict[str, Any]:
    """Fill `out/data`; metrics count documents of each kind, and tokens where there is a tokenizer."""
    import random

    from toolkit.checkpoints.folders import load_tokenizer
    from toolkit.data.splits import Splits, open_split

    if inputs.data is None and inputs.raw is None and inputs.general is None:
        raise ValueError("augment needs one of the inputs 'data', 'raw' and 'general' at least")
    if inputs.general is not None and inputs.tokenizer is None:
        raise ValueError("the input 'general' is put together and counted by a tokenizer: give the input 'tokenizer'")
    tokenizer = load_tokenizer(inputs.tokenizer.path) if inputs.tokenizer is not None else None
    documents: list[tuple[str, str]] = []
    if inputs.data is not None:
        documents += [("augmented", text) for text in _augmented(spec, inputs.data)]
    if inputs.raw is not None:
        rows = open_split(inputs.raw.path, spec.raw_split, [spec.raw_field])
        if spec.raw_skip >= len(rows):
            raise ValueError(f"raw_skip {spec.raw_skip} leaves nothing of the {len(rows)} rows of the input 'raw'")
        documents += [("raw", text) for text in rows[spec.raw_field][spec.raw_skip :]]
    tokens = {"rest": _count(tokenizer, [text for _, text in documents])} if tokenizer is not None else {}
    if inputs.general is not None:
        assert tokenizer is not None
        wanted = None if spec.general_ratio is None or not documents else spec.general_ratio * tokens["rest"]
        chosen, tokens["general"] = _general(spec, inputs.general, tokenizer, wanted)
        documents += [("general", text) for text in chosen]
    random.Random(spec.seed).shuffle(documents)
    splits = Splits(out / "data")
    for start in range(0, len(documents), BATCH):
        batch = documents[start : start + BATCH]
        splits.add("train", {"text": [text for _, text in batch], "kind": [kind for kind, _ in batch]})
        ctx.progress(start + len(batch), len(documents), unit="document")
    splits.finish()
    kinds = [kind for kind, _ in documents]
    counts = {f"documents_{kind}": kinds.count(kind) for kind in ("augmented", "raw", "general")}
    return counts | {f"tokens_{what}": count for what, count in tokens.items()}


def _augmented(spec: Spec, data: Artifact) -> Iterator[str]:
    from itertools import groupby

    from toolkit.data.splits import open_split
    from toolkit.generation import layouts
    from toolkit.generation.synthesis import Pair

    rows = open_split(data.path, "train", ["chain", "text", "questions", "answers"])
    for chain, members in groupby(rows, key=lambda row: row["chain"]):
        texts = [
            (m["text"], [Pair(question=q, answer=a) for q, a in zip(m["questions"], m["answers"], strict=True)])
            for m in members
        ]
        yield from layouts.augment(texts, spec.seed * 1_000_003 + chain)


def _general(
    spec: Spec, source: Artifact, tokenizer: "PreTrainedTokenizerBase", wanted: float | None
) -> tuple[list[str], int]:
    """Instructions as texts, drawn until there are `wanted` tokens of them.

    Raises:
        ValueError: there are fewer, or no chat template.
    """
    import random

    from toolkit.data.splits import open_split

    if spec.general_template == "chat" and not tokenizer.chat_template:
        raise ValueError("general_template is chat and the tokenizer has no chat template; use plain")
    rows = open_split(source.path, spec.general_split, ["prompt", "completion"])
    texts = [_text(spec, tokenizer, row["prompt"], row["completion"]) for row in rows]
    random.Random(spec.seed).shuffle(texts)
    sizes = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    if wanted is None:
        return texts, sum(sizes)
    total = taken = 0
    while taken < len(texts) and total + sizes[taken] / 2 < wanted:  # to the nearest
        total += sizes[taken]
        taken += 1
    if total + max(sizes) < wanted:
        raise ValueError(
            f"general_ratio {spec.general_ratio} asks for {wanted:.0f} tokens of general instructions, and there are"
            f" only {total}; give more of them, or lower the ratio"
        )
    return texts[:taken], total


def _text(spec: Spec, tokenizer: "PreTrainedTokenizerBase", prompt: str, completion: str) -> str:
    if spec.general_template == "plain":
        return prompt + completion
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion.strip()}]
    text = str(tokenizer.apply_chat_template(turns, tokenize=False)).removeprefix(tokenizer.bos_token or "")
    return text.rstrip().removesuffix(tokenizer.eos_token or "")  # packing adds both


def _count(tokenizer: "PreTrainedTokenizerBase", texts: list[str]) -> int:
    return sum(len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]) if texts else 0
