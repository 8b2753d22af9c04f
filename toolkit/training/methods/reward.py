"""A reward model of pairs (Bradley-Terry): loss = -log sigma(r(chosen) - r(rejected)), by TRL's RewardTrainer.

A language model's output head is replaced by one number (arXiv 2203.02155, equation 1); all weights are trained.
Several, from several seeds (head and order of rows differ), are an ensemble: `job: score` and the policy methods
average them. What comes out is a folder for transformers' AutoModelForSequenceClassification.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.stage import Artifact, Context
from toolkit.training.recipe import Tuned

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from toolkit.training.engine import Load
    from toolkit.training.exact import Exact


@dataclass(frozen=True, kw_only=True)
class Spec(Tuned):
    """The fields of `Tuned`, of which global_batch counts pairs."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """model: a language model, with its tokenizer. data: rows with `prompt`, `chosen` and `rejected`."""

    model: Artifact
    data: Artifact


def run(spec: Spec, inputs: Inputs, out: Path, ctx: Context) -> dict[str, Any]:
    """Fill `out` with the reward model, `steps/<N>/` and `loss.parquet` (with `accuracy` and `margin` of each step).

    Raises:
        ValueError: a pair of equal answers, no pair left, and what the engine says.
    """
    from toolkit.checkpoints.check import check_model
    from toolkit.checkpoints.folders import load_tokenizer
    from toolkit.data.splits import open_split
    from toolkit.training.engine import Run, settle, train
    from toolkit.training.pairs import tokenise_pairs
    from toolkit.training.rewards import REWARD, initial

    settle()
    check_model(inputs.model.path)
    tokenizer = load_tokenizer(inputs.model.path)
    data = open_split(inputs.data.path, spec.split, ["prompt", "chosen", "rejected"])
    rows, counts = tokenise_pairs(data, tokenizer, spec.template, spec.max_length, ctx.state)
    source = initial(inputs.model.path, spec.seed, ctx.state)
    plan = Run(
        recipe=spec.recipe(len(rows)),
        source=source,
        tokenizer=source,
        rows=rows,
        tokens_a_row=2 * counts["longest"],
        build=lambda arguments, load: _trainer(arguments, load, rows, tokenizer),
        auto=REWARD,
        traced={"accuracy": "accuracy", "margin": "margin"},
    )
    return train(plan, out, ctx) | counts


def _trainer(arguments: dict[str, Any], load: "Load", rows: "Dataset", tokenizer: "PreTrainedTokenizerBase") -> "Exact":
    from trl import RewardConfig, RewardTrainer
    from trl.trainer.reward_trainer import DataCollatorForPreference

    from toolkit.training.exact import Exact

    class Tuner(Exact, RewardTrainer):
        """RewardTrainer's loss, the engine's order and saves, rows that come as ids."""

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    args = RewardConfig(
        **arguments, gradient_checkpointing=False, max_length=None, remove_unused_columns=False, disable_dropout=True
    )
    model: Any = load()
    pad = DataCollatorForPreference(pad_token_id=int(model.config.get_text_config().pad_token_id))

    def collate(batch: list[dict[str, Any]]) -> Any:
        sides = [
            {f"{name}_ids": row["prompt_ids"] + row[f"{name}_ids"] for name in ("chosen", "rejected")} for row in batch
        ]
        return pad(sides)

    return Tuner(model=model, args=args, train_dataset=rows, processing_class=tokenizer, data_collator=collate)
