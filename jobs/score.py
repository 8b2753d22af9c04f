"""Ask reward models: which answer of a pair they prefer, or what they say of predictions. Several are an ensemble.

On pairs (`data`), accuracy is measured also by the size of the margin |r(chosen) - r(rejected)|, in equal parts from
the smallest to the largest (`accuracy_1` ...), beside what Bradley-Terry promises there (`promised_1` ...: the mean
of sigma(|margin|)): a model that knows when it knows has both rise together. An ensemble's reward is the mean of its
members', or the smallest, which is harder to cheat (arXiv 2310.02743).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from toolkit.checkpoints.whole import whole
from toolkit.stage import Artifact, Context, Interrupted

VERSION = 1
WARM = ("torch", "transformers.trainer", "datasets", "pyarrow.parquet")


@dataclass(frozen=True, kw_only=True)
class Spec:
    """combine: how the members of an ensemble become one reward. parts: of the margins. split, limit: of `data`."""

    split: str = "heldout"
    template: Literal["plain", "chat"] = "plain"
    max_length: int = 1024
    combine: Literal["mean", "min"] = "mean"
    parts: int = 4
    limit: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("max_length", 2), ("parts", 1), ("limit", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}: it must be at least {least}")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """reward: one or several reward models (`reward.NAME`). data: pairs, or predictions: of `job: generate`."""

    reward: dict[str, Artifact] = field(default_factory=dict)
    data: Artifact | None = None
    predictions: Artifact | None = None


def run(spec: Spec, inputs: Inputs, out: Path, ctx: Context) -> dict[str, Any]:
    """Fill `out` with rows.parquet and items.parquet (an item's rewards, one by one and together).

    Raises:
        ValueError: no reward model, data and predictions both or neither, what is no reward model, equal pairs.
    """
    from toolkit.evaluation.rows import write

    if not inputs.reward:
        raise ValueError("score needs the input 'reward': one reward model, or several as reward.NAME")
    if (inputs.data is None) == (inputs.predictions is None):
        raise ValueError("score needs either the input 'data' (pairs) or the input 'predictions', and not both")
    judges = {name: whole(artifact.path, ctx.state) for name, artifact in sorted(inputs.reward.items())}
    if inputs.data is not None:
        rows, items = _pairs(spec, judges, inputs.data.path, ctx)
    else:
        assert inputs.predictions is not None
        rows, items = _predictions(spec, judges, inputs.predictions.path, ctx)
    write(out, rows, items)
    return {"items": len(items), **{row["metric"]: row["value"] for row in rows}}


def _pairs(spec: Spec, judges: Mapping[str, Path], data: Path, ctx: Context) -> tuple[list[Any], list[Any]]:
    from toolkit.checkpoints.folders import load_tokenizer
    from toolkit.data.splits import open_split
    from toolkit.evaluation.rows import mean_row
    from toolkit.training.pairs import tokenise_pairs

    pairs = open_split(data, spec.split, ["prompt", "chosen", "rejected"], spec.limit)
    sides: dict[str, dict[str, list[float]]] = {"chosen": {}, "rejected": {}}
    for name, folder in judges.items():
        state = ctx.state / f"pairs-{name}"
        state.mkdir(exist_ok=True)
        rows, counts = tokenise_pairs(pairs, load_tokenizer(folder), spec.template, spec.max_length, state)
        if counts["dropped"]:
            raise ValueError(
                f"{counts['dropped']} of {len(pairs)} pairs are without a difference once they are cut to max_length"
                f" {spec.max_length}: raise max_length"
            )
        both = [p + c for p, c in zip(rows["prompt_ids"], rows["chosen_ids"], strict=True)]
        both += [p + r for p, r in zip(rows["prompt_ids"], rows["rejected_ids"], strict=True)]
        found = _asked(name, folder, both, ctx)
        sides["chosen"][name], sides["rejected"][name] = found[: len(rows)], found[len(rows) :]
    chosen, rejected = (_combined(spec, sides[side]) for side in ("chosen", "rejected"))
    margins = [c - r for c, r in zip(chosen, rejected, strict=True)]
    items = [
        {
            **_item(i, pairs[i]["prompt"], pairs[i]["chosen"], spec.split),
            "correct": margin > 0,
            "reward": chosen[i],
            "reward_rejected": rejected[i],
            "margin": margin,
            **{f"margin_{name}": sides["chosen"][name][i] - sides["rejected"][name][i] for name in judges if name},
        }
        for i, margin in enumerate(margins)
    ]
    measured = [mean_row(spec.split, "accuracy", [float(m > 0) for m in margins])]
    measured += [mean_row(spec.split, "margin", margins), *_by_margin(spec, margins)]
    return measured, items


def _by_margin(spec: Spec, margins: Sequence[float]) -> list[dict[str, Any]]:
    """Accuracy, and what is promised, in `parts` equal parts of the pairs by the size of their margin."""
    import math

    from toolkit.evaluation.rows import mean_row

    ordered = sorted(margins, key=abs)
    rows = []
    for number in range(spec.parts):
        part = ordered[len(ordered) * number // spec.parts : len(ordered) * (number + 1) // spec.parts]
        if part:
            promised = [1 / (1 + math.exp(-abs(margin))) for margin in part]
            rows.append(mean_row(spec.split, f"accuracy_{number + 1}", [float(margin > 0) for margin in part]))
            rows.append(mean_row(spec.split, f"promised_{number + 1}", promised))
    return rows


def _predictions(spec: Spec, judges: Mapping[str, Path], folder: Path, ctx: Context) -> tuple[list[Any], list[Any]]:
    import pyarrow.parquet

    from toolkit.checkpoints.folders import load_tokenizer
    from toolkit.evaluation.rows import mean_row
    from toolkit.training.turns import renderer

    told = pyarrow.parquet.read_table(folder / "predictions.parquet").to_pydict()
    answers = {"prompt": told["prompt"][: spec.limit], "completion": told["prediction"][: spec.limit]}
    each = {}
    for name, judge in judges.items():
        tokenizer = load_tokenizer(judge)
        ids = [
            (p + (c or [tokenizer.eos_token_id]))[: spec.max_length]
            for p, c in renderer(tokenizer, spec.template)(answers)
        ]
        each[name] = _asked(name, judge, ids, ctx)
    rewards = _combined(spec, each)
    items = [
        {
            **_item(i, answers["prompt"][i], None, "predictions"),
            "prediction": answers["completion"][i],
            "reward": value,
            **{f"reward_{name}": each[name][i] for name in judges if name},
        }
        for i, value in enumerate(rewards)
    ]
    return [mean_row("predictions", "reward", rewards)], items


def _asked(name: str, folder: Path, ids: list[list[int]], ctx: Context) -> list[float]:
    """Rewards by one member; the next one is loaded when this one is gone."""
    import torch

    from toolkit.training.rewards import judge

    torch.set_num_threads(ctx.resources.threads)
    found: list[float] = []
    member, step = judge(folder), 512
    for start in range(0, len(ids), step):
        if ctx.stop_requested:
            raise Interrupted(f"scoring by {name or 'the reward model'} was asked to stop at row {start}")
        found += member.scores(ids[start : start + step], ctx.resources.batch_tokens >> ctx.resources.halvings)
        ctx.progress(min(start + step, len(ids)), len(ids), unit="row")
    return found


def _combined(spec: Spec, each: Mapping[str, Sequence[float]]) -> list[float]:
    import math

    pairs = zip(*each.values(), strict=True)
    return [min(values) if spec.combine == "min" else math.fsum(values) / len(values) for values in pairs]


def _item(number: int, prompt: str, gold: str | None, task: str) -> dict[str, Any]:
    from toolkit.evaluation.rows import prompt_hash

    empty = dict.fromkeys(("prediction", "correct", "loglikelihoods", "bits_per_byte"))
    return {
        "task": task,
        "doc_id": number,
        "filter": "none",
        "prompt_hash": prompt_hash(prompt),
        "prompt": prompt,
        "gold": gold,
        **empty,
    }
