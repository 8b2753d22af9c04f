"""Supervised fine-tuning of all weights: cross-entropy on the tokens of completions only, by TRL's SFTTrainer.

A row is a prompt and a completion. `plain` puts one after the other; `chat` puts them through the tokenizer's chat
template as a user's and an assistant's turn. The end-of-text token follows the completion and is a target.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from toolkit.stage import Artifact, Context
from toolkit.training.recipe import Precision, Recipe, Schedule, check_numbers

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from toolkit.training.engine import Load
    from toolkit.training.exact import Exact


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Either `epochs` or `steps`. An epoch is every row once; the last batch is filled up from the next pass.

    global_batch: rows a step (packed rows with `packing`, which joins rows up to max_length without letting them see
    each other). warmup_ratio: share of the steps. max_length: tokens of prompt and completion; what is beyond it is
    cut, and a row without a target left is dropped.
    """

    method: str
    global_batch: int
    lr: float
    epochs: float | None = None
    steps: int | None = None
    schedule: Schedule = "linear"
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    betas: tuple[float, ...] = (0.9, 0.999)
    clip: float = 1.0
    precision: Precision = "fp32"
    max_length: int = 1024
    template: Literal["plain", "chat"] = "plain"
    packing: bool = False
    seed: int = 0
    keep_steps: tuple[int, ...] = ()
    split: str = "train"

    def __post_init__(self) -> None:
        check_numbers(
            lr=self.lr, global_batch=self.global_batch, betas=self.betas, clip=self.clip, weight_decay=self.weight_decay
        )
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(f"give either epochs or steps (epochs is {self.epochs!r}, steps is {self.steps!r})")
        if self.epochs is not None and not self.epochs > 0:
            raise ValueError(f"epochs is {self.epochs!r}: it must be above 0")
        if not 0 <= self.warmup_ratio < 1:
            raise ValueError(f"warmup_ratio is {self.warmup_ratio!r}: it is a share of the steps, from 0 up to 1")
        if self.steps is not None:
            self.recipe(rows=1)
        if self.max_length < 2:
            raise ValueError(f"max_length is {self.max_length}: a prompt and a completion take at least 2 tokens")

    def recipe(self, rows: int) -> Recipe:
        """The numbers as the engine takes them, for that many rows."""
        steps = self.steps if self.steps is not None else math.ceil((self.epochs or 0) * rows / self.global_batch)
        return Recipe(
            steps=steps,
            global_batch=self.global_batch,
            lr=self.lr,
            schedule=self.schedule,
            warmup_steps=int(self.warmup_ratio * steps),  # down: a warm-up of one step would be a step at lr 0
            weight_decay=self.weight_decay,
            betas=self.betas,
            clip=self.clip,
            precision=self.precision,
            seed=self.seed,
            keep_steps=self.keep_steps,
        )


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
        build=lambda arguments, load: _trainer(spec, arguments, load, rows, tokenizer),
    )
    return train(plan, out, ctx) | counts


def _pack(rows: "Dataset", length: int) -> "Dataset":
    """Best-fit decreasing; `seq_lengths` tells the collator where a row ends, so that position_ids keep rows apart."""
    from trl import pack_dataset

    return pack_dataset(rows.with_format("arrow"), length, "bfd").with_format(None)


def _trainer(
    spec: Spec, arguments: dict[str, Any], load: "Load", rows: "Dataset", tokenizer: "PreTrainedTokenizerBase"
) -> "Exact":
    from trl import SFTConfig, SFTTrainer

    from toolkit.training.exact import Exact

    class Tuner(Exact, SFTTrainer):
        """SFTTrainer's loss, the engine's order and saves."""

    args = SFTConfig(
        **arguments,
        gradient_checkpointing=False,  # TRL's default is to recompute: a fifth slower, for memory
        max_length=None,  # rows come cut
        padding_free=spec.packing,
        completion_only_loss=True,
        dataset_kwargs={"skip_prepare_dataset": True},  # rows come with labels
    )
    return Tuner(model=load(), args=args, train_dataset=rows, processing_class=tokenizer)
