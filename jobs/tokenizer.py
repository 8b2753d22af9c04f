"""Train a byte-level BPE tokenizer on a split of a data set."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from toolkit.stage import Artifact, Context

VERSION = 1
WARM = ("torch", "datasets", "transformers.tokenization_utils_tokenizers")


@dataclass(frozen=True, kw_only=True)
class Spec:
    """split, field: the text to learn from; of a supervised split, `prompt` or `completion` may be the field.

    vocab_size: ids in all, special tokens among them; met exactly or refused.
    min_frequency: a pair that occurs less often is not merged.
    eos, pad, bos, extra: special tokens; with bos, the tokenizer begins every text with it (as Llama's does).
    split_digits: each digit is a token of its own.
    chat_template: `plain` writes "User:" and "Assistant:" lines and marks the assistant's words for TRL's
        assistant_only_loss; `none` leaves the tokenizer without one.
    """

    split: str
    vocab_size: int
    field: str = "text"
    min_frequency: int = 2
    eos: str = "<|endoftext|>"
    pad: str = "<|pad|>"
    bos: str | None = None
    extra: tuple[str, ...] = ()
    split_digits: bool = False
    chat_template: Literal["plain", "none"] = "plain"

    def __post_init__(self) -> None:
        special = self.special
        if "" in special or len(set(special)) < len(special):
            raise ValueError(f"the special tokens must be different and not empty: {', '.join(map(repr, special))}")
        least = 256 + len(special)
        if self.vocab_size < least:
            raise ValueError(
                f"vocab_size is {self.vocab_size}; the least is {least}: 256 bytes and {len(special)} special tokens"
            )
        if self.min_frequency < 1:
            raise ValueError(f"min_frequency is {self.min_frequency}; it must be at least 1")

    @property
    def special(self) -> tuple[str, ...]:
        """All special tokens in the order of their ids, which are 0, 1, ..."""
        return (self.eos, self.pad, *([self.bos] if self.bos is not None else []), *self.extra)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """data: a data set artifact."""

    data: Artifact


def run(spec: Spec, inputs: Inputs, out: Path, ctx: Context) -> dict[str, Any]:
    """Write tokenizer.json and tokenizer_config.json; metrics: vocab_size, documents, bytes_per_token (on a sample)."""
    from toolkit.data import bpe
    from toolkit.data.packing import text_batches
    from toolkit.data.splits import open_split

    rows = open_split(inputs.data.path, spec.split)
    if spec.field not in rows.column_names:
        raise ValueError(f"split {spec.split!r} has no column {spec.field!r}; it has {', '.join(rows.column_names)}")
    tokenizer = bpe.train(
        (texts for texts in text_batches(rows, spec.field)),
        vocab_size=spec.vocab_size, min_frequency=spec.min_frequency, special=spec.special, bos=spec.bos,
        split_digits=spec.split_digits,
    )  # fmt: skip
    bpe.save(tokenizer, out, eos=spec.eos, pad=spec.pad, bos=spec.bos, chat_template=spec.chat_template)
    sample = next(text_batches(rows, spec.field))
    return {
        "vocab_size": tokenizer.get_vocab_size(),
        "documents": len(rows),
        "bytes_per_token": bpe.bytes_per_token(tokenizer, sample),
    }
