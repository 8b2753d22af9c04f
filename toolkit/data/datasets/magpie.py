"""What is worth learning from among instructions that a model wrote itself: the filters of Magpie (arXiv 2406.08464).

Good instructions, answers that a reward model does not reject, one of each group of near duplicates, no instruction
that stops at a colon; of these the longest answers, in random order. Columns come from `generate` with the recipes
tags, rewards and neighbours. Writes the split `train` with all columns of the rows.
"""

from dataclasses import dataclass
from typing import Any, Literal

from toolkit.data.splits import Splits, open_split
from toolkit.stage import Artifact, Context

STYLES = {"air": ("good", "excellent"), "pro": ("average", "good", "excellent")}  # of the published 300K sets
COLUMNS = {"input_quality": "tags", "instruct_reward": "rewards", "min_similar_id": "neighbours"}


@dataclass(frozen=True, kw_only=True)
class Spec:
    """style: which qualities are kept: air (from the 8B model) good ones, pro (from the 70B) average ones too.

    quality: these instead of the style's; [] for any. min_reward: rewards above it; null for any. distinct: only the
    first of near duplicates, even if it is dropped for something else. longest: rows with the longest answers; null for
    all. seed: of their order.
    """

    dataset: str
    split: str = "train"
    style: Literal["air", "pro"] = "air"
    quality: tuple[str, ...] | None = None
    min_reward: float | None = -10.0
    distinct: bool = True
    longest: int | None = 300_000
    seed: int = 42

    def __post_init__(self) -> None:
        if self.longest is not None and self.longest < 1:
            raise ValueError(f"longest is {self.longest}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """data: rows with `prompt` and `completion`, and the columns that the filters look at."""

    data: Artifact


def fill(spec: Spec, inputs: Inputs, splits: Splits, ctx: Context) -> dict[str, Any]:
    """Metrics: how many rows each filter was the first to drop.

    Raises:
        ValueError: a column that a filter needs is not there, or nothing is left.
    """
    import numpy as np

    quality = STYLES[spec.style] if spec.quality is None else spec.quality
    asked = {"input_quality": quality, "instruct_reward": spec.min_reward is not None, "min_similar_id": spec.distinct}
    rows = open_split(inputs.data.path, spec.split, ["prompt", "completion"])
    for column, wanted in asked.items():
        if wanted and column not in rows.column_names:
            raise ValueError(
                f"split {spec.split!r} has no column {column!r}, which generate with recipe {COLUMNS[column]} adds;"
                " make it first, or filter without it (quality: [], min_reward: null, distinct: false)"
            )
    kept, dropped = [], dict.fromkeys(("quality", "reward", "colon", "repeated", "short"), 0)
    looked = [name for name, wanted in asked.items() if wanted] + ["prompt"]
    for i, row in enumerate(rows.select_columns(looked)):
        reason = _reason(i, row, quality, spec)
        if reason is None:
            kept.append(i)
        else:
            dropped[reason] += 1
    if not kept:
        raise ValueError(f"none of the {len(rows)} rows is left: {dropped}; loosen the filter that drops most of them")
    lengths = [len(completion) for completion in rows.select(kept)["completion"][:]]
    order = np.argsort([-n for n in lengths], kind="stable")[: spec.longest]
    dropped["short"] = len(kept) - len(order)
    chosen = np.array(kept)[np.random.default_rng(spec.seed).permutation(order)]
    table = rows.select(chosen.tolist()).with_format("arrow")[:]
    splits.add("train", table.replace_schema_metadata(None))
    return {f"dropped_{name}": count for name, count in dropped.items()}


def _reason(i: int, row: dict[str, Any], quality: tuple[str, ...], spec: Spec) -> str | None:
    """Why row i is dropped. A missing rating or reward is not good enough; nothing near it makes a row distinct."""
    if quality and row["input_quality"] not in quality:
        return "quality"
    if spec.min_reward is not None:
        reward = row["instruct_reward"]
        if reward is None or not reward > spec.min_reward:
            return "reward"
    if row["prompt"].endswith(":"):
        return "colon"
    if spec.distinct and row["min_similar_id"] not in (None, i):
        return "repeated"
    return None
