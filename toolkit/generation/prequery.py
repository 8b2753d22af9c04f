"""What a model reads before a user's words: fed alone, it makes an aligned model write a user's words itself (Magpie,
Xu et al. 2024, arXiv 2406.08464).

The families of the paper have theirs in a table, as published: without the system prompt that a chat template may put
first. Of any other model it is what the tokenizer's chat template writes before the first user turn.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from toolkit.lookup import unknown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FAMILIES = {
    "llama3": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n",
    "qwen2": "<|im_start|>user\n",
    "gemma2": "<bos><start_of_turn>user\n\n",
    "mistral": "<s> [INST] ",
    "llama2": "<s> [INST] ",
    "phi3": "<s> <|user|>\n",
}
PLACE = "QueryPlace"  # a user's words that no template writes by itself


@dataclass(frozen=True, kw_only=True)
class PreQuery:
    """text: before the user's words. source: where it is from."""

    text: str
    source: str


def pre_query(tokenizer: "PreTrainedTokenizerBase", family: str | None) -> PreQuery:
    """That of a family, or (None) of the tokenizer's own chat template.

    Spaces at the end of a chat template's are left out: the first word brings its own, as in training.

    Raises:
        ValueError: an unknown family, one whose special tokens the tokenizer lacks, no chat template, or one that
            writes nothing before the first user turn.
    """
    if family is not None:
        if family not in FAMILIES:
            raise ValueError(f"{unknown('family', family, FAMILIES)}; or leave it out to take the chat template's")
        _check_tokens(tokenizer, family)
        return PreQuery(text=FAMILIES[family], source=f"family {family}")
    remedy = f"give the family ({', '.join(FAMILIES)}), or a model whose tokenizer has a chat template"
    if not tokenizer.chat_template:
        raise ValueError(f"no family is given and the tokenizer has no chat template to derive its own from: {remedy}")
    whole = str(tokenizer.apply_chat_template([{"role": "user", "content": PLACE}], tokenize=False))
    text = whole.split(PLACE)[0].rstrip(" ")
    if PLACE not in whole or not text:
        raise ValueError(f"the chat template writes nothing before the first user turn ({whole[:80]!r}): {remedy}")
    return PreQuery(text=text, source="the tokenizer's chat template")


def _check_tokens(tokenizer: "PreTrainedTokenizerBase", family: str) -> None:
    vocabulary = tokenizer.get_vocab()
    missing = [mark for mark in re.findall(r"<[^<>\s]+>", FAMILIES[family]) if mark not in vocabulary]
    if missing:
        raise ValueError(
            f"family is {family}, and {missing[0]} is no token of this tokenizer: the model is of another family"
            f" ({', '.join(FAMILIES)}); leave family out to take what its chat template says"
        )


def special_ids(tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    """Every special token: a user's words end where the model writes one."""
    added = [i for i, token in tokenizer.added_tokens_decoder.items() if token.special]
    return tuple(sorted({*tokenizer.all_special_ids, *added}))
