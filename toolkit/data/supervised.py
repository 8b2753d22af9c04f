"""Prompts and completions as token rows with a mask of the tokens to learn, one row each.

The ids are those that TRL's SFTTrainer would compute from the same text: prompt and completion are tokenized together,
EOS after the completion, and the completion begins where the ids part from those of the prompt alone.
"""

from itertools import takewhile
from typing import TYPE_CHECKING, Any, Literal

from toolkit.data.splits import Splits
from toolkit.stage import Context

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast

BATCH = 1000


def fill(
    name: str,
    rows: "Dataset",
    tokenizer: "PreTrainedTokenizerFast",
    length: int,
    overlong: Literal["refuse", "drop", "truncate"],
    splits: Splits,
    ctx: Context,
) -> dict[str, Any]:
    """Add `input_ids` and `completion_mask` (both int32) to split `name`; returns its metrics.

    Raises:
        ValueError: a row longer than `length` and `overlong` is "refuse"; no row is left.
    """
    total = learned = long = merged = kept = 0
    texts = rows.select_columns(["prompt", "completion"])
    for start in range(0, len(rows), BATCH):
        batch = texts[start : start + BATCH]
        if None in batch["prompt"] or None in batch["completion"]:
            raise ValueError(f"split {rows.split!s} has rows without a prompt or a completion (null); remove them")
        found = []
        for i, (ids, first, is_merged) in enumerate(encode(tokenizer, batch["prompt"], batch["completion"]), start):
            merged += is_merged
            if len(ids) > length:
                long += 1
                if overlong == "refuse":
                    raise ValueError(
                        f"row {i} of split {rows.split!s} has {len(ids)} tokens, more than sequence_length {length}; "
                        "raise it or set overlong: drop or overlong: truncate"
                    )
                # A truncated row whose prompt fills it alone teaches nothing.
                ids = ids[:length] if overlong == "truncate" and first < length else []
            if ids:
                found.append((ids, first))
        _add(splits, name, found)
        kept += len(found)
        total += sum(len(ids) for ids, _ in found)
        learned += sum(len(ids) - first for ids, first in found)
        ctx.progress(start + len(batch["prompt"]), len(rows), unit="row")
    if not kept:
        raise ValueError(f"every row of split {rows.split!s} is longer than sequence_length {length}; raise it")
    return {"tokens": total, "completion_tokens": learned, "rows_overlong": long, "rows_merged": merged}


def _add(splits: Splits, name: str, found: list[tuple[list[int], int]]) -> None:
    import pyarrow as pa

    kind = pa.list_(pa.int32())
    masks = [[0] * first + [1] * (len(ids) - first) for ids, first in found]
    splits.add(name, {"input_ids": pa.array([ids for ids, _ in found], kind), "completion_mask": pa.array(masks, kind)})


def encode(
    tokenizer: "PreTrainedTokenizerFast", prompts: list[str], completions: list[str]
) -> list[tuple[list[int], int, bool]]:
    """(ids, index of the first completion token, merged) for each row.

    `merged` says that a token spans the end of the prompt, so that the prompt's last tokens are not those that the
    model will see when it is asked.
    """
    eos = tokenizer.eos_token
    assert isinstance(eos, str)
    texts = [p + c + ("" if c.endswith(eos) else eos) for p, c in zip(prompts, completions, strict=True)]
    alone, whole = tokenizer(prompts)["input_ids"], tokenizer(texts)["input_ids"]
    found = []
    for prompt, ids in zip(alone, whole, strict=True):
        first = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, ids)))
        found.append((ids, first, first < len(prompt)))
    return found
