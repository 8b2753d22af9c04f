"""Preferences out of questions: the right answer is `chosen`, another row's answer is `rejected`. Both answer the same
kind of question where rows have an `attribute`. Every split with a `prompt` and a `completion` comes along.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from toolkit.data.splits import Splits, open_data
from toolkit.stage import Artifact, Context

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.random import Generator

BATCH = 1000


@dataclass(frozen=True, kw_only=True)
class Spec:
    """pairs: of each row, each with another wrong answer where there are as many."""

    dataset: str
    pairs: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pairs < 1:
            raise ValueError(f"pairs is {self.pairs}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """data: a data set artifact, with `prompt` and `completion`."""

    data: Artifact


def fill(spec: Spec, inputs: Inputs, splits: Splits, ctx: Context) -> dict[str, Any]:
    """Metrics: `alone`, rows that are left out because no other answer is there.

    Raises:
        ValueError: no split with a prompt and a completion.
    """
    import numpy as np

    data = open_data(inputs.data.path)
    names = [name for name in sorted(data) if {"prompt", "completion"} <= set(data[name].column_names)]
    if not names:
        raise ValueError(
            f"{inputs.data.path}: no split has the columns 'prompt' and 'completion'; it has {sorted(data)}"
        )
    alone = 0
    for number, name in enumerate(names):
        rng = np.random.default_rng([spec.seed, number])
        found, left = _pairs(spec, data[name], rng)
        alone += left
        for start in range(0, len(found), BATCH):
            batch = found[start : start + BATCH]
            splits.add(name, {column: [row[column] for row in batch] for column in batch[0]})
        ctx.progress(number + 1, len(names), unit="split")
    return {"alone": alone}


def _pairs(spec: Spec, rows: "Dataset", rng: "Generator") -> tuple[list[dict[str, str]], int]:
    kinds = rows["attribute"][:] if "attribute" in rows.column_names else [""] * len(rows)
    prompts, answers = rows["prompt"][:], rows["completion"][:]
    choices: dict[str, list[str]] = {}
    for kind in sorted(set(kinds)):
        choices[kind] = sorted({answer for k, answer in zip(kinds, answers, strict=True) if k == kind})
    found, alone = [], 0
    for prompt, answer, kind in zip(prompts, answers, kinds, strict=True):
        wrong = [other for other in choices[kind] if other.strip() != answer.strip()]
        alone += not wrong
        for place in rng.permutation(len(wrong))[: spec.pairs].tolist():
            found.append({"prompt": prompt, "chosen": answer, "rejected": wrong[place]})
    return found, alone
