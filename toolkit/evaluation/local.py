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

    The choices keep their order, unless the right one always stands in one place (as in SciQ): then they are shuffled
    by a generator keyed by the question, for otherwise one letter would always be right.

    Raises:
        ValueError: a row has more choices than there are letters.
    """
    made: dict[str, list[Any]] = {"prompt": [], "choices": [], "gold_index": []}
    one_place = len(set(rows["gold_index"])) == 1
    for question, options, gold in zip(rows["question"], rows["choices"], rows["gold_index"], strict=True):
        if len(options) > len(string.ascii_uppercase):
            raise ValueError(f"the question {question!r:.80} has {len(options)} choices, more than there are letters")
        order = list(range(len(options)))
        if one_place:
            random.Random(question).shuffle(order)
        letters = list(string.ascii_uppercase[: len(options)])
        listed = [f"{letter}. {options[place]}" for letter, place in zip(letters, order, strict=True)]
        made["prompt"].append("\n".join([question.rstrip(), *listed, "Answer:"]))
        made["choices"].append(letters)
        made["gold_index"].append(order.index(gold))
    bare = rows.remove_columns([name for name in made if name in rows.column_names])
    for name, column in made.items():
        bare = bare.add_column(name, column)
    return bare


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
