"""What a reward model gives the answers of a data set: the same rows with the column `instruct_reward`.

A pair is one user's and one assistant's turn in the reward model's chat template. One that exceeds its context gets no
reward.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.generation.models import Precision
from toolkit.stage import Artifact, Context

if TYPE_CHECKING:
    from toolkit.generation.rows import Row
    from toolkit.generation.spread import Work


@dataclass(frozen=True, kw_only=True)
class Spec:
    """precision: type of the weights; only in fp32 is a reward independent of the batch."""

    recipe: str
    split: str = "train"
    precision: Precision = "fp32"


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """model: a sequence classifier with one label and a chat template. data: rows with `prompt` and `completion`."""

    model: Artifact
    data: Artifact


@dataclass(frozen=True, kw_only=True)
class Score:
    """Of one row."""

    id: int
    tokens: int
    value: float


def run(spec: Spec, inputs: Inputs, out: Path, ctx: Context) -> dict[str, Any]:
    """Fill `out/data`; metrics: rows, too_long, and the mean reward."""
    from toolkit.checkpoints.check import read_config
    from toolkit.checkpoints.folders import load_tokenizer
    from toolkit.data.splits import open_split
    from toolkit.generation.columns import add_columns
    from toolkit.generation.models import context_length
    from toolkit.generation.rows import encode
    from toolkit.generation.spread import Part, spread

    rows = open_split(inputs.data.path, spec.split, ["prompt", "completion"])
    config, tokenizer = read_config(inputs.model.path), load_tokenizer(inputs.model.path)
    if config.num_labels != 1:
        raise ValueError(f"{inputs.model.path} has {config.num_labels} labels; a reward model has one (num_labels: 1)")
    if not tokenizer.chat_template:
        raise ValueError(f"the tokenizer of {inputs.model.path} has no chat template to put a pair into; add one to it")
    pairs = [
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        for prompt, completion in zip(rows["prompt"][:], rows["completion"][:], strict=True)
    ]
    turns = [str(tokenizer.apply_chat_template(pair, tokenize=False)) for pair in pairs]
    context = context_length(config) or 1 << 62
    scored = [row for row in encode(tokenizer, turns, chat=True) if len(row.tokens) <= context]
    budget = ctx.resources.batch_tokens >> ctx.resources.halvings
    part = Part(
        name="scores", rows=scored, kind=Score, build=lambda rank: _scorer(spec, inputs.model.path, rank, ctx),
        budget=budget, new_tokens=1,
    )  # fmt: skip
    found = {score.id: score.value for score in spread(part, ctx)}
    add_columns(out, spec.split, rows, {"instruct_reward": ([found.get(i) for i in range(len(rows))], "float")})
    return {
        "rows": len(rows),
        "too_long": len(rows) - len(scored),
        "mean_reward": sum(found.values()) / len(found) if found else None,
    }


def _scorer(spec: Spec, folder: Path, rank: int, ctx: Context) -> "Work[Score]":
    import torch

    from toolkit.generation.engine import pad
    from toolkit.generation.models import device_of, load

    model, tokenizer = load(folder, spec.precision, ctx.resources.threads, rank, "AutoModelForSequenceClassification")
    classify: Any = model
    filler = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if filler is None:
        raise ValueError(f"the tokenizer of {folder} has neither a pad token nor an end-of-text token: set one")
    classify.config.get_text_config().pad_token_id = filler  # the score is read at the last token that is none

    @torch.inference_mode()
    def work(batch: "list[Row]") -> list[Score]:
        ids, mask = pad(batch, filler)
        device = device_of(model)
        logits = classify(input_ids=ids.to(device), attention_mask=mask.to(device)).logits[:, 0].float().tolist()
        return [Score(id=row.id, tokens=len(row.tokens), value=v) for row, v in zip(batch, logits, strict=True)]

    return work
