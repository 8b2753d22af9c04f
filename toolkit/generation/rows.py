"""Rows of a split as prompts: render a template, tokenize, hold the context limit.

Supervised rows have `prompt` and `completion` (and often `gold`, the bare answer).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

Template = Literal["plain", "chat"]
PASSED = ("task", "attribute")  # columns of a split that stay with the prediction, for scores by group


@dataclass(frozen=True, kw_only=True)
class Row:
    """One prompt: `id` is the row's index in its split, `tokens` what the model reads."""

    id: int
    tokens: tuple[int, ...]


def gold_column(rows: "Dataset") -> str:
    """The column with the right answers: `gold` where there is one, else `completion`.

    Raises:
        ValueError: neither is there.
    """
    for name in ("gold", "completion"):
        if name in rows.column_names:
            return name
    raise ValueError(f"the rows have neither a 'gold' nor a 'completion' column, only {sorted(rows.column_names)}")


def tokenize(tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str], template: Template) -> list[Row]:
    """Prompts as rows with ids 0, 1, ...; `chat` puts each into the tokenizer's chat template as one user turn.

    Raises:
        ValueError: a chat template is asked for and the tokenizer has none, or a prompt has no tokens.
    """
    texts = _chat(tokenizer, prompts) if template == "chat" else list(prompts)
    # A text that opens with the BOS token (chat templates write it) must not get a second one from the tokenizer.
    bos = tokenizer.bos_token
    bare = [template == "chat" or bool(bos and text.startswith(bos)) for text in texts]
    encoded: list[list[int]] = [[] for _ in texts]
    for special in (True, False):
        chosen = [i for i, b in enumerate(bare) if b is not special]
        if chosen:
            ids = tokenizer([texts[i] for i in chosen], add_special_tokens=special)["input_ids"]
            for i, tokens in zip(chosen, ids, strict=True):
                encoded[i] = tokens
    empty = [i for i, tokens in enumerate(encoded) if not tokens]
    if empty:
        raise ValueError(f"row {empty[0]} has a prompt without tokens: {texts[empty[0]]!r}; remove it from the data")
    return [Row(id=i, tokens=tuple(tokens)) for i, tokens in enumerate(encoded)]


def _chat(tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str]) -> list[str]:
    if not tokenizer.chat_template:
        raise ValueError("template 'chat' needs a tokenizer with a chat template, and this one has none; use 'plain'")
    turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
    return [str(tokenizer.apply_chat_template(t, tokenize=False, add_generation_prompt=True)) for t in turns]


def fit(
    rows: Sequence[Row], context: int | None, new_tokens: int, overlong: Literal["refuse", "truncate"]
) -> tuple[list[Row], int]:
    """Rows that leave room for `new_tokens` in the context, and how many had to lose tokens on the left for it.

    Raises:
        ValueError: a prompt is too long and `overlong` is "refuse", or no prompt at all would have room.
    """
    if context is None:
        return list(rows), 0
    room = context - new_tokens
    if room < 1:
        raise ValueError(f"max_new_tokens {new_tokens} leaves no room for a prompt in the model's {context} positions")
    long = [row for row in rows if len(row.tokens) > room]
    if long and overlong == "refuse":
        raise ValueError(
            f"{len(long)} prompts are longer than {room} tokens (context {context} less max_new_tokens {new_tokens}); "
            f"the first is row {long[0].id} with {len(long[0].tokens)}; lower max_new_tokens, shorten the data or set "
            "overlong: truncate to drop their first tokens"
        )
    return [Row(id=row.id, tokens=row.tokens[-room:]) for row in rows], len(long)
