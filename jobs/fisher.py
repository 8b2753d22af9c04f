"""Diagonal Fisher information of a model on rows of a data set: what `merge` with `method: fisher` weights by.

M. Matena and C. Raffel, "Merging models with Fisher-weighted averaging", arXiv 2111.09832; `toolkit.merging.fisher`
says what is estimated.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from toolkit.checkpoints.whole import whole_inputs
from toolkit.stage import Artifact, Context

VERSION = 1
WARM = ("torch", "datasets", "transformers.modeling_utils", "transformers.models.auto.modeling_auto")


@dataclass(frozen=True, kw_only=True)
class Spec:
    """rows: of the split, from its beginning. labels: drawn by the model (the Fisher information), or the data's (the
    empirical one); `seed` draws them. template, max_length: of rows with prompt and completion, as in training."""

    split: str = "train"
    rows: int = 256
    labels: Literal["sampled", "data"] = "sampled"
    template: Literal["plain", "chat"] = "plain"
    max_length: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("rows", 1), ("max_length", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least {least}")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """model: with its tokenizer. data: rows with `prompt` and `completion` (targets are the completion and its end), or
    with `input_ids` (every token but the first is a target)."""

    model: Artifact
    data: Artifact


def run(spec: Spec, inputs: Inputs, out: Path, ctx: Context) -> dict[str, Any]:
    """Fill `out` with the Fisher information of every weight: laid out as a model, and none to be asked.

    Raises:
        ValueError: no such split or columns, no target, rows that are longer than the model's context.
    """
    from toolkit.merging.fisher import write_fisher

    inputs = whole_inputs(inputs, ctx.state)
    total, rows = _rows(spec, inputs, ctx)
    return write_fisher(inputs.model.path, rows, total, spec.labels, spec.seed, out, ctx)


def _rows(spec: Spec, inputs: Inputs, ctx: Context) -> tuple[int, Iterator[tuple[list[int], list[int]]]]:
    from toolkit.checkpoints.folders import load_tokenizer
    from toolkit.data.splits import open_split
    from toolkit.training.turns import check_context, tokenise

    data = open_split(inputs.data.path, spec.split, limit=spec.rows)
    if "input_ids" in data.column_names:
        given = (row["input_ids"][: spec.max_length] for row in data)
        longest = max(len(row["input_ids"][: spec.max_length]) for row in data)
        check_context(longest, inputs.model.path)
        return len(data), ((ids, ids) for ids in given)
    missing = [name for name in ("prompt", "completion") if name not in data.column_names]
    if missing:
        raise ValueError(
            f"split {spec.split!r} of {inputs.data.path} has no column {missing[0]!r} and no 'input_ids'; it has"
            f" {', '.join(sorted(data.column_names))}"
        )
    rows, counts = tokenise(data, load_tokenizer(inputs.model.path), spec.template, spec.max_length, ctx.state)
    check_context(counts["longest"], inputs.model.path)
    return len(rows), ((row["input_ids"], row["labels"]) for row in rows)
