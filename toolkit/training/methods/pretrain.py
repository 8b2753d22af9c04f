"""Pre-training: next-token cross-entropy on packed rows, from an architecture at random or from a model that exists.

Data rows are `input_ids` of one length, as prepare's `dataset: packed` makes them. Documents in a row attend to each
other, as is usual in pre-training, unless the rows bring `position_ids` that restart with each: then none sees another.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.stage import Artifact, Context
from toolkit.training.architecture import check_words, make_config
from toolkit.training.recipe import Stepped

if TYPE_CHECKING:
    from datasets import Dataset

    from toolkit.training.engine import Load
    from toolkit.training.exact import Exact


@dataclass(frozen=True, kw_only=True)
class Spec(Stepped):
    """`architecture`: fields of the Hugging Face config, model_type first; left out if a model is trained further.

    The others are those of `Stepped`, and final_lr_ratio: where a cosine ends, as a share of lr.
    """

    architecture: dict[str, Any] = field(default_factory=dict)
    final_lr_ratio: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.architecture:
            check_words(self.architecture)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """`data`: packed rows. `tokenizer`: what they were made with. `model`: what to train further."""

    data: Artifact
    tokenizer: Artifact
    model: Artifact | None = None


def run(spec: Spec, inputs: Inputs, out: Path, ctx: Context) -> dict[str, Any]:
    """Fill `out` with the trained model, `steps/<N>/` and `loss.parquet`.

    Raises:
        ValueError: architecture and model both or neither given, rows that do not fit, and what the engine says.
    """
    from toolkit.checkpoints.check import check_model
    from toolkit.data.splits import open_split
    from toolkit.training.engine import Run, settle, train

    settle()
    source = _source(spec, inputs, ctx)
    summary = check_model(source, tokenizer=inputs.tokenizer.path)
    rows = open_split(inputs.data.path, spec.split, ["input_ids"])  # packed rows: prepare with `dataset: packed`
    length = row_length(rows, source)
    plan = Run(
        recipe=spec.recipe(),
        source=source,
        tokenizer=inputs.tokenizer.path,
        rows=rows,
        tokens_a_row=length,
        build=lambda arguments, load: _trainer(arguments, load, rows, summary.vocab_size),
        fused=True,
    )
    return train(plan, out, ctx) | {"parameters": summary.parameters, "rows": len(rows), "row_tokens": length}


def _source(spec: Spec, inputs: Inputs, ctx: Context) -> Path:
    """The model folder that training starts from; a new model is written once, and found again by later attempts."""
    if inputs.model is not None:
        if spec.architecture:
            raise ValueError("architecture is given and a model as well: leave out one of them")
        _same_tokens(inputs.model.path, inputs.tokenizer.path)
        return inputs.model.path
    if not spec.architecture:
        raise ValueError("neither an architecture nor a model is given: set architecture, or the input `model`")
    return _initial(spec, inputs.tokenizer.path, ctx.state)


def _same_tokens(model: Path, tokenizer: Path) -> None:
    from toolkit.checkpoints.folders import vocabulary

    theirs, ours = vocabulary(model), vocabulary(tokenizer)
    different = sorted(token for token in theirs.keys() | ours.keys() if theirs.get(token) != ours.get(token))
    if different:
        raise ValueError(
            f"the model in {model} has another tokenizer than {tokenizer}: {len(different)} tokens have other ids, such"
            f" as {different[0]!r}; tokenise the data with the model's own tokenizer"
        )


def _initial(spec: Spec, tokenizer: Path, state: Path) -> Path:
    """A model at random from the seed, in fp32, in `state/initial`."""
    import torch
    from transformers import AutoModelForCausalLM

    from toolkit.manifest.files import discard
    from toolkit.training.exact import attempt_folder

    folder = state / "initial"
    if not folder.is_dir():
        config = make_config(spec.architecture, tokenizer)
        torch.manual_seed(spec.seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        part = attempt_folder(state)
        model.save_pretrained(part)
        try:
            part.rename(folder)
        except OSError:  # another node of this attempt, or a lost attempt that still runs, has made the same one
            if not folder.is_dir():
                raise
            discard(part)
    return folder


def row_length(rows: "Dataset", source: Path) -> int:
    """Tokens of a packed row, which the model in `source` must have positions for (or ValueError)."""
    from toolkit.checkpoints.check import read_config

    length = len(rows[0]["input_ids"]) if len(rows) else 0
    limit = getattr(read_config(source).get_text_config(), "max_position_embeddings", None)
    if limit is not None and length > limit:
        raise ValueError(
            f"the rows have {length} tokens and the model {limit} positions: set architecture.max_position_embeddings"
            f" to at least {length}, or pack with a sequence_length of at most {limit}"
        )
    return length


def _trainer(arguments: dict[str, Any], load: "Load", rows: "Dataset", vocab_size: int) -> "Exact":
    from transformers import TrainingArguments

    from toolkit.training.exact import Exact

    args = TrainingArguments(**arguments, remove_unused_columns=False)
    model: Any = load()
    model.config.use_cache = False  # with a cache, transformers would let packed documents see each other
    return Exact(model=model, args=args, train_dataset=rows, data_collator=collator(vocab_size))


def collator(vocab_size: int) -> Any:
    import torch

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids = torch.tensor([row["input_ids"] for row in rows])
        if int(ids.max()) >= vocab_size:
            raise ValueError(
                f"the data has token id {int(ids.max())} and the embedding only {vocab_size} rows: it was tokenised"
                " with another tokenizer"
            )
        labels = ids.clone()
        if "position_ids" not in rows[0]:
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
        # No attention mask: transformers then makes one from where the positions restart, one document a block.
        positions = torch.tensor([row["position_ids"] for row in rows])
        labels[positions == 0] = -100  # what a document begins with is not to be learned from the one before
        return {"input_ids": ids, "position_ids": positions, "labels": labels}

    return collate
