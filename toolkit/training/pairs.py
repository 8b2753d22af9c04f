"""Pairs of answers to one prompt, of which the first is preferred, as token ids: for reward models and DPO."""

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.manifest.files import seal, write_atomic
from toolkit.training.turns import BATCH, renderer

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")


def tokenise_pairs(
    data: "Dataset", tokenizer: "PreTrainedTokenizerBase", template: str, max_length: int, state: Path
) -> "tuple[Dataset, dict[str, int]]":
    """Rows of `prompt_ids`, `chosen_ids` and `rejected_ids`, memory-mapped from `state`, and counts.

    data: rows with `prompt`, `chosen` and `rejected`. What is beyond max_length is cut off the end of an answer; a pair
    is dropped that has no token left of one of them, or whose answers are the same after cutting. Rows that an earlier
    attempt tokenised are used again.

    Raises:
        ValueError: a pair of equal answers, no end-of-text token, no chat template, a column that is not text, or no
            pair left.
    """
    from datasets import Dataset

    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end-of-text token (eos_token): answers could not be ended; set one")
    path, told = state / "pairs.arrow", state / "pairs.json"
    if not told.is_file():
        counts = {"rows": 0, "truncated": 0, "dropped": 0, "longest": 0}
        _write(_rows(data, tokenizer, template, max_length, counts), path)
        if counts["rows"] == 0:
            raise ValueError(
                f"no completion token is left in any of the {len(data)} pairs, or no difference, after cutting to"
                f" max_length {max_length}: raise max_length, or look whether answers are empty"
            )
        write_atomic(told, json.dumps(counts).encode())
    return Dataset.from_file(str(path)), json.loads(told.read_text())


def _rows(
    data: "Dataset", tokenizer: "PreTrainedTokenizerBase", template: str, max_length: int, counts: dict[str, int]
) -> Iterator[tuple[list[int], list[int], list[int]]]:
    render, number = renderer(tokenizer, template), 0
    for batch in data.select_columns(["prompt", "chosen", "rejected"]).iter(BATCH):
        sides = [render({"prompt": batch["prompt"], "completion": batch[name]}) for name in ("chosen", "rejected")]
        for (prompt, chosen), (_, rejected) in zip(*sides, strict=True):
            if chosen == rejected:
                raise ValueError(
                    f"pair {number} has equal answers, so that neither is preferred: {tokenizer.decode(chosen)!r}; take"
                    " such pairs out of the data (prepare with `dataset: preferences` and drop_equal: true does)"
                )
            number += 1
            counts["truncated"] += len(prompt) + max(len(chosen), len(rejected)) > max_length
            room = max(0, max_length - len(prompt))
            chosen, rejected = chosen[:room], rejected[:room]
            if not prompt or not chosen or not rejected or chosen == rejected:
                counts["dropped"] += 1
                continue
            counts["rows"] += 1
            counts["longest"] = max(counts["longest"], len(prompt) + max(len(chosen), len(rejected)))
            yield prompt, chosen, rejected


def _write(rows: Iterator[tuple[list[int], list[int], list[int]]], path: Path) -> None:
    import pyarrow

    schema = pyarrow.schema({name: pyarrow.list_(pyarrow.int32()) for name in COLUMNS})
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    held: list[Any] = []
    with pyarrow.OSFile(str(part), "wb") as sink, pyarrow.ipc.new_stream(sink, schema) as writer:

        def flush() -> None:
            columns = [pyarrow.array(column, schema.field(0).type) for column in zip(*held, strict=True)]
            writer.write_batch(pyarrow.record_batch(columns, schema=schema))
            held.clear()

        for row in rows:
            held.append(row)
            if len(held) == BATCH:
                flush()
        if held:
            flush()
    seal(part)
    part.replace(path)
