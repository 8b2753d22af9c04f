"""Text tokenized once, as blocks of one length for pre-training.

A split with `text` becomes `input_ids` (int32) of exactly `sequence_length` tokens, documents one after the other with
EOS between; the tokens that fill no last block are dropped and counted. Output splits: `train`, and `validation` if a
split is named for it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from toolkit.data.splits import Splits, open_split
from toolkit.stage import Artifact, Context

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from toolkit.data.packing import Packer


@dataclass(frozen=True, kw_only=True)
class Spec:
    """split, validation: the splits that become `train` and `validation`.

    field: column of a text split. tokens: budget of `train`, rounded down to whole blocks; None takes all.
    shuffle_seed: order of the documents of `train`; None keeps it. bos: also begin each document with BOS.
    document_boundaries: add `position_ids` that restart with each document, so that none sees another in training.
    parse_special: read the names of special tokens in the text as these tokens instead of as text.
    """

    dataset: str
    split: str
    sequence_length: int
    validation: str | None = None
    field: str = "text"
    tokens: int | None = None
    shuffle_seed: int | None = None
    bos: bool = False
    document_boundaries: bool = False
    parse_special: bool = False

    def __post_init__(self) -> None:
        if self.sequence_length < 2:
            raise ValueError(f"sequence_length is {self.sequence_length}; it must be at least 2")
        if self.tokens is not None and self.tokens < self.sequence_length:
            raise ValueError(f"tokens is {self.tokens}, less than one block of sequence_length {self.sequence_length}")
        if self.validation == self.split:
            raise ValueError(f"validation and split are both {self.split!r}; validate on other documents")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """data: a data set artifact. tokenizer: a tokenizer or model artifact."""

    data: Artifact
    tokenizer: Artifact


def fill(spec: Spec, inputs: Inputs, splits: Splits, ctx: Context) -> dict[str, Any]:
    """Metrics, of `train` under these names and of `validation` with `validation_` before them: `tokens`, `documents`,
    `tokens_dropped`, `bytes_per_token`. Also `vocab_size`, the number of ids the tokenizer may give.
    """
    from toolkit.checkpoints.folders import load_tokenizer

    tokenizer = load_tokenizer(inputs.tokenizer.path)
    if spec.bos and tokenizer.bos_token_id is None:
        raise ValueError(f"bos is set, and the tokenizer in {inputs.tokenizer.path} has no bos_token; leave it out")
    metrics: dict[str, Any] = {"vocab_size": len(tokenizer)}
    for name, source in (("train", spec.split), ("validation", spec.validation)):
        if source is None:
            continue
        rows = open_split(inputs.data.path, source, [spec.field])
        if name == "train" and spec.shuffle_seed is not None:
            rows = _shuffled(rows, spec.shuffle_seed)
        found = _fill_split(name, spec, rows, tokenizer, splits, ctx)
        prefix = "" if name == "train" else f"{name}_"
        metrics |= {f"{prefix}{key}": value for key, value in found.items()}
    return metrics


def _shuffled(rows: "Dataset", seed: int) -> "Dataset":
    import numpy as np

    return rows.select(np.random.default_rng(seed).permutation(len(rows)), keep_in_memory=True)


def _fill_split(
    name: str, spec: Spec, rows: "Dataset", tokenizer: "PreTrainedTokenizerBase", splits: Splits, ctx: Context
) -> dict[str, Any]:
    from toolkit.data.packing import Packer

    # Text that spells "<|endoftext|>" must not end a document unless the user wants it to.
    tokenizer.backend_tokenizer.encode_special_tokens = not spec.parse_special
    packer = Packer(spec.sequence_length, spec.document_boundaries)
    limit = None if name != "train" or spec.tokens is None else spec.tokens // spec.sequence_length
    count = size = ids = 0
    for texts, tokens, table in _blocks(spec, rows, tokenizer, packer, limit):
        count += len(texts)
        size += sum(len(text.encode()) for text in texts)
        ids += tokens
        if table is not None:
            splits.add(name, table)
        done = count / len(rows) if limit is None else packer.blocks / limit
        ctx.progress(round(done * len(rows)), len(rows), unit="document", tokens=packer.blocks * spec.sequence_length)
        if limit is not None and packer.blocks == limit:
            break
    if not packer.blocks or (limit is not None and packer.blocks < limit):
        raise ValueError(_too_little(name, spec, ids))
    return {
        "tokens": packer.blocks * spec.sequence_length,
        "documents": count,
        "tokens_dropped": packer.left if limit is None else 0,
        "bytes_per_token": size / max(ids - count * (1 + spec.bos), 1),
    }


def _blocks(
    spec: Spec, rows: "Dataset", tokenizer: "PreTrainedTokenizerBase", packer: "Packer", limit: int | None
) -> Iterator[tuple[list[str], int, Any]]:
    """(texts, their number of tokens, complete blocks or None), a batch at a time."""
    from toolkit.data.packing import encode, text_batches

    for texts in text_batches(rows, spec.field):
        tokens, lengths = encode(tokenizer, texts, spec.bos)
        yield texts, len(tokens), packer.push(tokens, lengths, None if limit is None else limit - packer.blocks)


def _too_little(name: str, spec: Spec, ids: int) -> str:
    source = spec.split if name == "train" else spec.validation
    wanted = f"tokens {spec.tokens}" if spec.tokens else f"one block of sequence_length {spec.sequence_length}"
    return f"split {source!r} has only {ids} tokens, which is less than {wanted}; lower that or give more text"
