"""What a careful reader would object to in a table, found before it is shown: each finding is one sentence.

Scores that different models share to five decimals, a perfect score before training, items that are missing, answers
that are all the same: they are told, since a person must judge them. Scores of two harnesses in one table are refused
unless they were asked for: their difference is no difference between models.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from toolkit.analysis.gaps import NOT_KEYS, NUMBERS, encode, keys, show
from toolkit.analysis.sentinel import REPEAT, drift
from toolkit.analysis.stats import PROPORTIONS, plain

HARNESS = b"tidemark.harness"
FORM = (
    "format",
    "shots",
    "harness",
    "tasks",
    "limit",
    REPEAT,
)  # axes that say how a model was asked, not which model it is
DECIMALS = 5


def with_harnesses(table: pa.Table, harness: pa.ChunkedArray) -> pa.Table:
    """`table` that knows which artifacts (12 digits) each harness scored, for tasks that more than one scored."""
    words = pa.table({"task": table["task"], "word": harness, "fingerprint": table["fingerprint"]})
    pairs = words.filter(pc.is_valid(words["word"])).group_by(["task", "word"]).aggregate([]).to_pylist()
    by_task: dict[str, list[str]] = {}
    for pair in pairs:
        by_task.setdefault(pair["task"], []).append(pair["word"])
    scored = {task: _artifacts(words, task, found) for task, found in by_task.items() if len(found) > 1}
    if not scored:
        return table
    return table.replace_schema_metadata({**(table.schema.metadata or {}), HARNESS: json.dumps(scored)})


def _artifacts(words: pa.Table, task: str, harnesses: Sequence[str]) -> dict[str, list[str]]:
    of_task = words.filter(pc.equal(words["task"].cast(pa.string()), task))
    plain = of_task["word"].cast(pa.string())
    return {w: sorted(set(of_task["fingerprint"].filter(pc.equal(plain, w)).to_pylist())) for w in harnesses}


def one_harness(table: pa.Table, shown: Sequence[str] = (), metric: str = "") -> None:
    """Refuse a table in which one task and metric was scored by several harnesses, or versions of one or of the task.

    What a column `harness` tells apart is no mixture where it is among the columns `shown`. Where `metric` is one of
    the table's, no other counts.

    Raises:
        ValueError: it was; the message names tasks, harnesses and the remedy.
    """
    scored = json.loads((table.schema.metadata or {}).get(HARNESS, b"{}"))
    if not scored and "harness" not in table.column_names:
        return
    of_artifact = {
        (task, fp): word for task, words in scored.items() for word, prints in words.items() for fp in prints
    }
    names = ["task", "metric", "fingerprint", *(["harness"] if "harness" in table.column_names else [])]
    kept = _scores(table).select(names)
    found: dict[tuple[str, str, str], set[str]] = {}
    for row in kept.group_by(names).aggregate([]).to_pylist():
        own = row.get("harness")
        word = own or of_artifact.get((row["task"], row["fingerprint"]), "this toolkit")
        seen = str(own) if "harness" in shown else ""
        found.setdefault((row["task"], row["metric"], seen), set()).add(word)
    if metric in {key[1] for key in found}:
        found = {key: words for key, words in found.items() if key[1] == metric}
    mixed = sorted((key, words) for key, words in found.items() if len(_told_apart(words)) > 1)
    if mixed:
        (task, metric, _), words = mixed[0]
        more = f" (and {len(mixed) - 1} more)" if len(mixed) > 1 else ""
        raise ValueError(
            f"{metric!r} of task {task!r}{more} was scored by {' and by '.join(sorted(words))}: numbers of two"
            " harnesses do not compare. Choose one (--where), or say --any-harness"
        )


def _told_apart(words: set[str]) -> set[str]:
    """Without those that leave out the version of the task, which older artifacts do not tell."""
    return {word for word in words if not any(other.startswith(f"{word}, task ") for other in words)}


def findings(table: pa.Table) -> list[str]:
    """All that the guards below say of a long table (of `measure`)."""
    return [*perfect_before_training(table), *fewer_items(table), *drift(table), *shared_scores(table)]


def shared_scores(table: pa.Table, most: int = 100) -> list[str]:
    """Models that have the same score of one task to five decimals: the same weights, or one answer for every item?

    Scores of 0 and 1 do not count. Few items tie by chance as well: each finding says how likely that is, the least
    likely come first, and of more than `most` the rest are counted. Two models of equal skill tie with probability
    w / (2 sqrt(pi) stderr), where w is 1 / n for a share of n items and 1e-5 for other scores; k - 1 or more such ties
    among all pairs that were asked alike are taken to be Poisson distributed.
    """
    from scipy.special import pdtrc  # a command that only reads a table does without it

    rows = _scores(table)
    if not rows.num_rows:
        return []
    asked = ["task", "metric", *(n for n in keys(table) if n in FORM)]
    group = np.zeros(rows.num_rows, np.int64)
    for name in asked:
        codes, labels = encode(rows[name])
        group = group * len(labels) + codes
    _, group, asked_alike = np.unique(group, return_inverse=True, return_counts=True)
    score = np.round(rows["value"].to_numpy() * 10.0**DECIMALS)
    scores, code = np.unique(score, return_inverse=True)
    both = group * len(scores) + code
    _, first, place, same = np.unique(both, return_index=True, return_inverse=True, return_counts=True)
    told = [k for k in np.flatnonzero(same > 1) if score[first[k]] not in (0, 10.0**DECIMALS)]
    plain = rows.select(["metric", *NUMBERS]).take(pa.array(first[told])).to_pylist()
    ties = [_ties(int(asked_alike[group[first[k]]]), row) for k, row in zip(told, plain)]
    likely = pdtrc(same[told] - 2, ties) if told else ties  # of a Poisson variable to be `same` - 1 or more
    found = []
    for i in sorted(range(len(told)), key=lambda i: likely[i])[:most]:
        members = rows.take(pa.array(np.flatnonzero(place == told[i]))).to_pylist()
        found.append(f"{_shared(members, asked)} (by chance: {likely[i]:.2g})")
    return found + (
        [f"{len(told) - most} more scores are shared, none of them less likely by chance"] if len(told) > most else []
    )


def _shared(members: Sequence[Mapping[str, Any]], asked: Sequence[str]) -> str:
    one = members[0]
    how = " ".join(f"{n} {show(one[n])}" for n in asked if n in FORM and one[n] is not None)
    models = ["; ".join(_model(row) for row in members[:4]), "; ..." if len(members) > 4 else ""]
    place = f"{one['task']} ({how})" if how else one["task"]
    return f"{len(members)} models have {one['metric']} {one['value']:.{DECIMALS}f} on {place}: {''.join(models)}"


def _ties(models: int, row: Mapping[str, Any]) -> float:
    """How many pairs of equally good `models` would tie by chance; 0 where nothing is known of the spread."""
    value, n, error = row["value"], row["n"], row["stderr"]
    share = plain(row["metric"]) in PROPORTIONS and 0 < value < 1
    if share and not n and error:
        n = value * (1 - value) / error**2  # what a standard error of a share says of its items
    if share and n and not error:
        error = math.sqrt(value * (1 - value) / n)
    if not error:
        return 0.0
    width = 1 / n if share and n else 10.0**-DECIMALS
    return models * (models - 1) / 2 * min(1.0, width / (2 * math.sqrt(math.pi) * error))


def _model(row: Mapping[str, Any]) -> str:
    """What tells this model from others, without how it was asked."""
    without = {*NOT_KEYS, *FORM, "stage", "task", "metric", "tokens"}
    shown = [f"{n} {show(v)}" for n, v in row.items() if v is not None and n not in without]
    return " ".join([str(row["stage"]), *shown])


def perfect_before_training(table: pa.Table) -> list[str]:
    """Tasks on which the earliest checkpoint of a model scores 0.99 or more: are all gold answers one and the same?"""
    rows = _scores(table)
    there = [n for n in ("step", "tokens") if n in rows.column_names]
    ordered = [n for n in there if pa.types.is_integer(rows.schema.field(n).type)]
    if not ordered or not rows.num_rows:  # names of checkpoints tell no first one
        return []
    over = ordered[0]
    share = pc.match_substring_regex(rows["metric"].cast(pa.string()), "^(acc|exact_match)")
    rows = rows.filter(pc.and_(share, pc.is_valid(rows[over])))
    first = pc.min(rows[over])
    perfect = rows.filter(pc.and_(pc.equal(rows[over], first), pc.greater_equal(rows["value"], 0.99)))
    pairs = perfect.group_by(["task", "metric"]).aggregate([]).to_pylist()
    return [
        f"{row['metric']} of {row['task']} is 0.99 or more at {over} {show(first.as_py())} already: are all its gold "
        "answers one class?"
        for row in sorted(pairs, key=lambda row: (row["task"], row["metric"]))
    ]


def fewer_items(table: pa.Table) -> list[str]:
    """Tasks that were scored on different numbers of items: rows were lost, or a limit was left in a spec.

    What others published is not held against one's own: they may have taken another split.
    """
    rows = _scores(table)
    sizes = rows.filter(pc.is_valid(rows["n"])).group_by(["job", "task", "metric", "n"]).aggregate([("value", "count")])
    counts: dict[tuple[str, str, str], dict[int, int]] = {}
    for row in sizes.to_pylist():
        counts.setdefault((row["task"], row["metric"], row["job"]), {})[row["n"]] = row["value_count"]
    return [
        f"{metric} of {task} is of {max(n)} items in {n[max(n)]} rows and of fewer "
        f"({', '.join(map(str, sorted(n)[:-1][:4]))}) in {sum(n.values()) - n[max(n)]}: is a limit left in a spec?"
        for (task, metric, _), n in sorted(counts.items())
        if len(n) > 1
    ]


def single_class(items: pa.Table) -> list[str]:
    """Tasks of items.parquet whose gold answers are all the same: whatever always says it scores 1."""
    golds = items.group_by(["task"]).aggregate([("gold", "count_distinct"), ("gold", "count")]).to_pylist()
    return [
        f"all {row['gold_count']} items of {row['task']} have one gold answer: a score on them says nothing"
        for row in golds
        if row["gold_count"] > 1 and row["gold_count_distinct"] == 1
    ]


def counted(made: Mapping[str, Any], wanted: str) -> dict[str, int]:
    """Task -> how many the record of an evaluation counts, without those of none: `truncated_requests`, prompts that
    did not fit the context, or `left_out`, items of the task that were not asked."""
    counts = {name.rpartition("/"): count for name, count in made.get("metrics", {}).items()}
    return {task: int(count) for (task, _, what), count in counts.items() if what == wanted and task and count}


def chance(items: pa.Table) -> dict[str, float]:
    """Task -> the score of guessing, for multiple-choice tasks of items.parquet: the mean of 1 / choices."""
    sizes = pc.list_value_length(items["loglikelihoods"])
    found = {}
    for task in pc.unique(items["task"]).to_pylist():
        of_task = sizes.filter(pc.equal(items["task"], task)).drop_null().to_numpy()
        if len(of_task) and of_task.min() > 1:  # a single likelihood is of the gold answer alone
            found[task] = float(np.mean(1 / of_task))
    return found


def _scores(table: pa.Table) -> pa.Table:
    """The rows of tasks that have a number; jobs' own metrics (a loss, a norm) are no scores."""
    return table.filter(pc.and_(pc.is_valid(table["task"]), pc.is_valid(table["value"])))
