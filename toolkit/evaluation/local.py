"""What the task files of configs/tasks name with `!function`: rows of a data artifact as an lm-eval data set."""

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.data.splits import open_data

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

OPTIONS = 4  # choices of a cloze question: chance is 1 in 4


def splits(*, folder: str, **metadata: Any) -> "DatasetDict":
    """All splits of the data artifact in `folder`, memory-mapped; lm-eval passes the task's `metadata` along."""
    import datasets

    # A map over a memory-mapped split would leave its cache file in the committed artifact.
    datasets.disable_caching()
    return open_data(Path(folder))


def with_choices(rows: "Dataset") -> "Dataset":
    """`rows` with `choices` (OPTIONS completions) and `gold_index`: the right completion among others.

    The others are drawn from the golds of the same `attribute` (of all rows where there is no such column), by a
    generator keyed by the row's own words: a row gets the same choices in every run and at every limit. Where an
    attribute has fewer values than OPTIONS, there are as many choices as values.

    Raises:
        ValueError: all rows of an attribute have the same gold, so that there is nothing to choose from.
    """
    golds = [str(gold) for gold in rows["gold"]]
    kinds = rows["attribute"][:] if "attribute" in rows.column_names else [""] * len(golds)
    pools: dict[Any, set[str]] = {}
    for kind, gold in zip(kinds, golds, strict=True):
        pools.setdefault(kind, set()).add(gold)
    ordered = {kind: sorted(pool) for kind, pool in pools.items()}
    choices, index = [], []
    for prompt, completion, kind, gold in zip(rows["prompt"], rows["completion"], kinds, golds, strict=True):
        others = [value for value in ordered[kind] if value != gold]
        if not others:
            raise ValueError(f"every row with attribute {kind!r} has the gold {gold!r}: nothing to choose from")
        rng = random.Random(f"{prompt}\n{gold}")
        chosen = rng.sample(others, min(OPTIONS - 1, len(others)))
        index.append(rng.randrange(len(chosen) + 1))
        chosen.insert(index[-1], gold)
        choices.append([_completion(completion, gold, value) for value in chosen])
    return rows.add_column("choices", choices).add_column("gold_index", index)


def _completion(completion: str, gold: str, value: str) -> str:
    """The completion as it would read with another answer; what surrounds the gold (a space, a full stop) stays."""
    if gold in completion:
        return completion.replace(gold, value, 1)
    return completion[: len(completion) - len(completion.lstrip())] + value
