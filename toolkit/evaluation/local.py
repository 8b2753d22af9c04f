"""What the task files of configs/tasks name with `!function`: rows of a data artifact as an lm-eval data set, choices
made of them, and scores of what a model wrote."""

import random
import re
import string
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.data.splits import open_data
from toolkit.evaluation import scores

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

OPTIONS = 4  # choices of a cloze question: chance is 1 in 4


def splits(*, folder: str, format: str = "", **metadata: Any) -> "DatasetDict":
    """All splits of the data artifact in `folder`, memory-mapped; lm-eval passes the task's `metadata` along.

    format: what the columns `prompt` and `completion` come from: `prompt_instruct` for "instruct". A completion that
    has no column of its own is the same in every format.
    """
    import datasets

    # A map over a memory-mapped split would leave its cache file in the committed artifact.
    datasets.disable_caching()
    data = open_data(Path(folder))
    for column in ("prompt", "completion") if format else ():
        for split, rows in data.items():
            if f"{column}_{format}" in rows.column_names:
                bare = rows.remove_columns([column]) if column in rows.column_names else rows
                data[split] = bare.rename_column(f"{column}_{format}", column)
    return data


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


def lettered(rows: "Dataset") -> "Dataset":
    """`rows` with the choices listed under letters in the `prompt`, and the letters for `choices`.

    Raises:
        ValueError: a row has more choices than there are letters.
    """
    prompts, choices = [], []
    for question, options in zip(rows["question"], rows["choices"], strict=True):
        if len(options) > len(string.ascii_uppercase):
            raise ValueError(f"the question {question!r:.80} has {len(options)} choices, more than there are letters")
        choices.append(list(string.ascii_uppercase[: len(options)]))
        listed = [f"{letter}. {option}" for letter, option in zip(choices[-1], options, strict=True)]
        prompts.append("\n".join([question.rstrip(), *listed, "Answer:"]))
    bare = rows.remove_columns([name for name in ("prompt", "choices") if name in rows.column_names])
    return bare.add_column("prompt", prompts).add_column("choices", choices)


def acc(*, references: Sequence[str], predictions: Sequence[str]) -> float:
    """1.0 if what was written begins with the words of the right answer, up to case, punctuation and space around them.

    The words must end there: "yes, because" is "yes", and "yesterday" is not.
    """
    (right,), (said,) = references, predictions
    return float(re.match(rf"\W*{re.escape(right.strip())}(?!\w)", said, re.IGNORECASE) is not None)


def rouge_l(*, references: Sequence[str], predictions: Sequence[str]) -> float:
    """ROUGE-L F-measure of one answer, without the space around it."""
    (right,), (said,) = references, predictions
    return scores.rouge_l(said.strip(), right.strip())


def _completion(completion: str, gold: str, value: str) -> str:
    """The completion as it would read with another answer; what surrounds the gold (a space, a full stop) stays."""
    if gold in completion:
        return completion.replace(gold, value, 1)
    return completion[: len(completion) - len(completion.lstrip())] + value
