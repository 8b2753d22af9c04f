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
TrailingSpace = Literal["keep", "strip", "refuse"]
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
        ValueError: a chat template is asked for and the tokenizer has none, or what `encode` refuses.
    """
    return encode(tokenizer, render(tokenizer, prompts, template), chat=template == "chat")


def encode(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], *, chat: bool = False) -> list[Row]:
    """Texts as a model reads them, with one BOS at most: one that begins with it (chat templates write it) gets no
    other. chat: the texts come from a chat template, which has said all that it wants to say.

    Raises:
        ValueError: a text without tokens, or one that begins with two BOS: no model was trained on that.
    """
    bos = tokenizer.bos_token
    bare = [chat or bool(bos and text.startswith(bos)) for text in texts]
    encoded: list[list[int]] = [[] for _ in texts]
    for special in (True, False):
        chosen = [i for i, b in enumerate(bare) if b is not special]
        if chosen:
            ids = tokenizer([texts[i] for i in chosen], add_special_tokens=special)["input_ids"]
            for i, tokens in zip(chosen, ids, strict=True):
                encoded[i] = tokens
    for i, tokens in enumerate(encoded):
        if not tokens:
            raise ValueError(f"row {i} has a prompt without tokens: {texts[i]!r}; remove it from the data")
        if bos and tokens[:2] == [tokenizer.bos_token_id] * 2:
            raise ValueError(
                f"row {i} begins with {bos} twice: {texts[i][:60]!r}; take it out of the text or of the chat template,"
                " one of which adds what the other has"
            )
    return [Row(id=i, tokens=tuple(tokens)) for i, tokens in enumerate(encoded)]


def render(tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str], template: Template) -> list[str]:
    """The texts that the model will read.

    Raises:
        ValueError: a chat template is asked for and the tokenizer has none.
    """
    if template == "plain":
        return list(prompts)
    if not tokenizer.chat_template:
        raise ValueError("template 'chat' needs a tokenizer with a chat template, and this one has none; use 'plain'")
    turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
    return [str(tokenizer.apply_chat_template(t, tokenize=False, add_generation_prompt=True)) for t in turns]


def end_spaces(texts: Sequence[str], what: TrailingSpace) -> tuple[list[str], int]:
    """The texts, and how many ended in a space. A tokenizer puts the space of the next word into that word's token:
    after a space of its own a model finds no word that it knows, and often says nothing.

    Raises:
        ValueError: one does, and `what` is "refuse".
    """
    spaced = [i for i, text in enumerate(texts) if text.endswith(" ")]
    if spaced and what == "refuse":
        raise ValueError(
            f"{len(spaced)} prompts end in a space, the first is row {spaced[0]}: {texts[spaced[0]][-40:]!r}; take the"
            " space out of the data, or set trailing_space: strip"
        )
    return [text.rstrip(" ") for text in texts] if what == "strip" else list(texts), len(spaced)


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
