"""Direct preference optimisation (arXiv 2305.18290, equation 7), by TRL's DPOTrainer.

loss = -log sigma(beta x ([log p(chosen) - log p_ref(chosen)] - [log p(rejected) - log p_ref(rejected)])), a mean over
pairs; log p is summed over the tokens of an answer, its end included. The reference stays as it is.
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
    """The fields of `Tuned`, of which global_batch counts pairs, and beta: what it costs to leave the reference."""

    beta: float = 0.1
    warmup_ratio: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta > 0:
            raise ValueError(f"beta is {self.beta!r}: it must be above 0 (0.1 is usual)")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """model: what is tuned, with its tokenizer. data: rows with `prompt`, `chosen`, `rejected`. reference: `model`."""

    model: Artifact
    data: Artifact
    reference: Artifact | None = None


def run(spec: Spec, inputs: Inputs, out: Path, ctx: Context) -> dict[str, Any]:
    """Fill `out` with the tuned model, `steps/<N>/` and `loss.parquet` (with `accuracy` and `margin` of each step).

    Raises:
        ValueError: a pair of equal answers, no pair left, a reference with another tokenizer, and what the engine says.
    """
    from toolkit.checkpoints.check import check_model
    from toolkit.checkpoints.folders import load_tokenizer
    from toolkit.data.splits import open_split
    from toolkit.training.engine import Run, settle, train
    from toolkit.training.methods.distill import same_tokens
    from toolkit.training.pairs import tokenise_pairs

    settle()
    source = inputs.model.path
    check_model(source)
    reference = source if inputs.reference is None else inputs.reference.path
    if reference != source:
        check_model(reference)
        same_tokens(source, reference, role="reference")
    tokenizer = load_tokenizer(source)
    data = open_split(inputs.data.path, spec.split, ["prompt", "chosen", "rejected"])
    rows, counts = tokenise_pairs(data, tokenizer, spec.template, spec.max_length, ctx.state)
    plan = Run(
        recipe=spec.recipe(len(rows)),
        source=source,
        tokenizer=source,
        rows=rows,
        tokens_a_row=2 * counts["longest"],
        build=lambda arguments, load: _trainer(spec, arguments, load, reference, rows, tokenizer),
        traced={"accuracy": "rewards/accuracies", "margin": "rewards/margins"},
    )
    return train(plan, out, ctx) | counts


def _trainer(
    spec: Spec,
    arguments: dict[str, Any],
    load: "Load",
    reference: Path,
    rows: "Dataset",
    tokenizer: "PreTrainedTokenizerBase",
) -> "Exact":
    from trl import DPOConfig, DPOTrainer

    from toolkit.training.engine import load as load_model
    from toolkit.training.exact import Exact

    class Tuner(Exact, DPOTrainer):
        """DPOTrainer's loss, the engine's order and saves, rows that come as ids."""

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    args = DPOConfig(
        **arguments,
        beta=spec.beta,
        gradient_checkpointing=False,
        max_length=None,  # rows come cut
        remove_unused_columns=False,
    )
    model, frozen = load(), load_model(reference)
    return Tuner(model=model, ref_model=frozen, args=args, train_dataset=rows, processing_class=tokenizer)
