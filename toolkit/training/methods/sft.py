"""Supervised fine-tuning of all weights: cross-entropy on the tokens of completions only.

A row is a prompt and a completion. `plain` puts one after the other; `chat` puts them through the tokenizer's chat
template as a user's and an assistant's turn. The end-of-text token follows the completion and is a target.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.stage import Artifact, Context
from toolkit.training.recipe import Tuned
from toolkit.training.turns import IGNORED

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from toolkit.training.engine import Load
    from toolkit.training.exact import Exact


@dataclass(frozen=True, kw_only=True)
class Spec(Tuned):
    """The fields of `Tuned`, and packing, which joins rows up to max_length without letting them see each other;
    global_batch counts packed rows then."""

    packing: bool = False


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """`model`: what is tuned, with its tokenizer. `data`: rows with `prompt` and `completion`."""

    model: Artifact
    data: Artifact


def run(spec: Spec, inputs: Inputs, out: Path, ctx: Context) -> dict[str, Any]:
    """Fill `out` with the tuned model, `steps/<N>/` and `loss.parquet`.

    Raises:
        ValueError: no such split or column, no chat template, no end-of-text token, no target left, and what the engine
            says.
    """
    return tune(spec, inputs, out, ctx, lambda model: model)


def tune(spec: Spec, inputs: Inputs, out: Path, ctx: Context, wrap: Callable[[Any], Any], **how: Any) -> dict[str, Any]:
    """What `run` does, with a model that `wrap` has made something else of; `how` are further fields of the engine's
    `Run`."""
    from toolkit.checkpoints.check import check_model
    from toolkit.checkpoints.folders import load_tokenizer
    from toolkit.data.splits import open_split
    from toolkit.training.engine import Run, settle, train
    from toolkit.training.turns import check_context, tokenise

    settle()
    source = inputs.model.path
    check_model(source)
    tokenizer = load_tokenizer(source)
    data = open_split(inputs.data.path, spec.split, ["prompt", "completion"])
    rows, counts = tokenise(data, tokenizer, spec.template, spec.max_length, ctx.state)
    check_context(counts["longest"], source)
    if spec.packing:
        rows = _pack(rows, spec.max_length)
    plan = Run(
        recipe=spec.recipe(len(rows)),
        source=source,
        tokenizer=source,
        rows=rows,
        tokens_a_row=spec.max_length if spec.packing else counts["longest"],
        build=lambda arguments, load: _trainer(arguments, lambda: wrap(load()), rows, tokenizer),
        fused=True,
        **how,
    )
    return train(plan, out, ctx) | counts


def _pack(rows: "Dataset", length: int) -> "Dataset":
    """Best-fit decreasing; `seq_lengths` tells the collator where a row ends, so that position_ids keep rows apart."""
    from trl import pack_dataset

    return pack_dataset(rows.with_format("arrow"), length, "bfd").with_format(None)


def _trainer(arguments: dict[str, Any], load: "Load", rows: "Dataset", tokenizer: "PreTrainedTokenizerBase") -> "Exact":
    from transformers import TrainingArguments

    from toolkit.training.exact import Exact

    args = TrainingArguments(**arguments, remove_unused_columns=False)
    model: Any = load()
    model.config.use_cache = False  # with a cache, transformers would let packed rows see each other
    pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    collate = _join if "seq_lengths" in rows.column_names else partial(_pad, pad)
    return Exact(model=model, args=args, train_dataset=rows, data_collator=collate, processing_class=tokenizer)


def _pad(pad: int, rows: list[dict[str, Any]]) -> "dict[str, torch.Tensor]":
    """Rows side by side, filled up on the right."""
    import torch

    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.full((len(rows), longest), pad)
    labels, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
    for at, row in enumerate(rows):
        size = len(row["input_ids"])
        ids[at, :size], labels[at, :size] = torch.tensor(row["input_ids"]), torch.tensor(row["labels"])
        mask[at, :size] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _join(rows: list[dict[str, Any]]) -> "dict[str, torch.Tensor]":
    """Packed rows one after the other as one long row, without padding.

    No attention mask: transformers then makes one from where the positions restart, so that no text sees another.
    """
    import torch

    ids, labels = (torch.tensor([i for row in rows for i in row[name]]) for name in ("input_ids", "labels"))
    positions = torch.cat([torch.arange(size) for row in rows for size in row["seq_lengths"]])
    labels[positions == 0] = IGNORED  # what a text begins with is not to be learned from the one before
    return {"input_ids": ids[None], "position_ids": positions[None], "labels": labels[None]}
