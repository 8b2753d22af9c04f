"""A mixture of data sets by weight, within a budget, without what evaluation sets have in them.

Every source (`data.NAME`) gives rows in random order, by `seed`, until it has its share of the budget; with `passes`
above 1 it may begin again. A row that shares an n-gram with a set that is evaluated (`against.NAME`) is left out before
it counts. Split `train`, its rows in random order: `text`, or `prompt` and `completion`, and `source`.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from toolkit.data import tasks
from toolkit.data.splits import Splits, open_data, open_split
from toolkit.lookup import find, unknown
from toolkit.stage import Artifact, Context

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from toolkit.data.contamination import Evaluated

BATCH = 500


@dataclass(frozen=True, kw_only=True)
class Spec:
    """weights: source -> its share, relative to the others; sources without one are not used.

    tokens: budget, counted by the tokenizer with an end token a row; rows: a budget of rows instead. split: of the
    sources. passes: how often a source may be read. ngram: words that a row and an evaluation set must share. scored:
    the splits of the evaluation sets that count; all of them if left out, for RTE and TweetQA are scored on `train`.
    heldout: kinds of tasks (the file of their templates: nli, paraphrase, ...) that no source may be of: a split of
    tasks, not of rows, as zero-shot generalization is measured on (arXiv 2110.08207).
    """

    dataset: str
    weights: dict[str, float]
    tokens: int | None = None
    rows: int | None = None
    split: str = "train"
    passes: int = 1
    ngram: int = 13
    scored: tuple[str, ...] = ()
    heldout: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.tokens is None) == (self.rows is None):
            raise ValueError(f"give either tokens or rows (tokens is {self.tokens!r}, rows is {self.rows!r})")
        for name in ("tokens", "rows", "passes", "ngram"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        wrong = [name for name, weight in self.weights.items() if not weight > 0]
        if wrong or not self.weights:
            what = f"{wrong[0]} has {self.weights[wrong[0]]}" if wrong else "there is none"
            raise ValueError(f"weights must be above 0, one for each source that is used; {what}")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """data.NAME: the sources. against.NAME: sets that are evaluated. tokenizer: for a budget of tokens."""

    data: dict[str, Artifact] = field(default_factory=dict)
    against: dict[str, Artifact] = field(default_factory=dict)
    tokenizer: Artifact | None = None


def fill(spec: Spec, inputs: Inputs, splits: Splits, ctx: Context) -> dict[str, Any]:
    """Metrics: of a source `rows_of_`, `tokens_of_` (with a budget of tokens), `passes_of_` (how often it was read);
    of every evaluation set `contaminated_by_`, training rows that were left out for it, `found_of_`, the share of its
    own rows that were found in them, and `too_short_of_`, its rows with fewer than `ngram` words; `ngram`, and
    `dropped`, rows left out in all.

    Raises:
        ValueError: a source that is not there, is held out, has other columns, or is too small for its share.
    """
    for name in spec.weights:
        if name not in inputs.data:
            raise ValueError(f"weights: {unknown('source', name, inputs.data)}; a source is an input data.NAME")
    _refuse_heldout(spec, inputs)
    sets = {name: _evaluated(spec, artifact) for name, artifact in inputs.against.items()}
    tokenizer = _tokenizer(spec, inputs)
    columns = _columns(spec, inputs)
    metrics: dict[str, Any] = {"ngram": spec.ngram, "dropped": 0}
    metrics |= {f"contaminated_by_{name}": 0 for name in sets}
    taken: list[tuple[str, int]] = []
    total = sum(spec.weights.values())
    for i, (name, weight) in enumerate(spec.weights.items()):
        budget = (spec.tokens or spec.rows or 0) * weight / total
        rows = open_split(inputs.data[name].path, spec.split, columns)
        chosen = _draw(spec, name, rows, budget, tokenizer, sets, metrics)
        taken += [(name, number) for number in chosen]
        ctx.progress(i + 1, len(spec.weights), unit="source")
    _write(spec, inputs, columns, taken, splits)
    for name, found in sets.items():
        metrics |= {f"found_of_{name}": len(found.hit) / max(found.rows, 1), f"too_short_of_{name}": found.too_short}
    return metrics


def _refuse_heldout(spec: Spec, inputs: Inputs) -> None:
    """A source that says of itself to be of a kind of task that is held out; one that says nothing cannot be judged."""
    for name in spec.weights if spec.heldout else ():
        dataset = inputs.data[name].record.get("spec", {}).get("dataset")
        about = getattr(find(tasks.PACKAGE, dataset, "dataset"), "ABOUT", None) if dataset is not None else None
        if about is None or not about.templates:
            raise ValueError(f"source {name!r} is {dataset or 'a folder'}, of no kind of tasks: heldout cannot be held")
        if about.templates in spec.heldout:
            raise ValueError(
                f"source {name!r} is of the tasks {about.templates!r}, which are held out ({', '.join(spec.heldout)})"
            )


def _evaluated(spec: Spec, artifact: Artifact) -> "Evaluated":
    from toolkit.data.contamination import read, texts

    data = open_data(artifact.path)
    for name in spec.scored:
        if name not in data:
            raise ValueError(f"scored: {artifact.path}: {unknown('split', name, data)}")
    return read(texts(data, str(artifact.path), spec.scored or tuple(data)), spec.ngram)


def _tokenizer(spec: Spec, inputs: Inputs) -> "PreTrainedTokenizerBase | None":
    from toolkit.checkpoints.folders import load_tokenizer

    if (spec.tokens is None) != (inputs.tokenizer is None):
        raise ValueError("a budget of tokens is counted by the input 'tokenizer'; a budget of rows needs none")
    return load_tokenizer(inputs.tokenizer.path) if inputs.tokenizer is not None else None


def _columns(spec: Spec, inputs: Inputs) -> tuple[str, ...]:
    """The columns that all the sources have."""
    from toolkit.data.contamination import text_columns

    kinds = {}
    for name in spec.weights:
        rows = open_split(inputs.data[name].path, spec.split)
        kinds[name] = text_columns(rows.column_names, f"source {name!r}")
    if len(set(kinds.values())) > 1:
        told = "; ".join(f"{name}: {'+'.join(columns)}" for name, columns in kinds.items())
        raise ValueError(f"sources of a mixture have the same columns, and these differ: {told}")
    return next(iter(kinds.values()))


def _draw(
    spec: Spec,
    name: str,
    rows: "Dataset",
    budget: float,
    tokenizer: "PreTrainedTokenizerBase | None",
    sets: "dict[str, Evaluated]",
    metrics: dict[str, Any],
) -> list[int]:
    """The numbers of the rows that a source gives, in the order that they were drawn; the last one may go beyond the
    budget, so that every source has at least its share."""
    rng = _rng(spec, name)
    chosen: list[int] = []
    clean: dict[int, bool] = {}
    had, count, passes = 0.0, len(rows), 0
    while had < budget and passes < spec.passes:
        passes += 1
        for batch in _batches(rows, rng.permutation(count)):
            for number, text, size in _sized(batch, tokenizer):
                if had >= budget:
                    break
                if number not in clean:
                    clean[number] = _is_clean(text, spec.ngram, sets, metrics)
                if clean[number]:
                    chosen.append(number)
                    had += size
            if had >= budget:
                break
    unit = "tokens" if tokenizer is not None else "rows"
    if had < budget:
        dropped = f", {sum(not ok for ok in clean.values())} of its rows left out" if sets else ""
        raise ValueError(
            f"source {name!r} has {had:,.0f} {unit} in {spec.passes} passes{dropped}, and its share is {budget:,.0f}: "
            "raise passes, or lower its weight or the budget"
        )
    metrics[f"rows_of_{name}"] = len(chosen)
    metrics[f"passes_of_{name}"] = len(chosen) / sum(clean.values()) if passes > 1 else len(chosen) / count
    if tokenizer is not None:
        metrics[f"tokens_of_{name}"] = int(had)
    return chosen


def _rng(spec: Spec, name: str) -> "np.random.Generator":
    import numpy as np

    return np.random.default_rng([spec.seed, zlib.crc32(name.encode())])


def _batches(rows: "Dataset", order: "np.ndarray") -> Iterator[tuple[list[int], list[str]]]:
    """(numbers, texts) of the rows in that order."""
    from toolkit.data.contamination import text_columns

    columns = text_columns(rows.column_names, "a source")
    for start in range(0, len(order), BATCH):
        numbers = order[start : start + BATCH].tolist()
        batch = rows.select_columns(list(columns))[numbers]
        yield numbers, ["".join(parts) for parts in zip(*(batch[name] for name in columns), strict=True)]


def _sized(
    batch: tuple[list[int], list[str]], tokenizer: "PreTrainedTokenizerBase | None"
) -> Iterator[tuple[int, str, int]]:
    numbers, found = batch
    if tokenizer is None:
        sizes = [1] * len(found)
    else:
        encoded = tokenizer.backend_tokenizer.encode_batch_fast(found, add_special_tokens=False)
        sizes = [len(item.ids) + 1 for item in encoded]
    return zip(numbers, found, sizes, strict=True)


def _is_clean(text: str, n: int, sets: "dict[str, Evaluated]", metrics: dict[str, Any]) -> bool:
    from toolkit.data.contamination import ngrams

    digests = list(ngrams(text, n)) if sets else []
    found = [name for name, evaluated in sets.items() if evaluated.found_in(digests)]
    for name in found:
        metrics[f"contaminated_by_{name}"] += 1
    metrics["dropped"] += bool(found)
    return not found


def _write(spec: Spec, inputs: Inputs, columns: tuple[str, ...], taken: list[tuple[str, int]], splits: Splits) -> None:
    """All rows in one random order; read source by source within a batch."""
    order = _rng(spec, "").permutation(len(taken)).tolist()
    sources = {name: open_split(inputs.data[name].path, spec.split, columns) for name in spec.weights}
    for start in range(0, len(order), BATCH):
        picked = [taken[i] for i in order[start : start + BATCH]]
        rows: list[dict[str, Any]] = [{} for _ in picked]
        for name, source in sources.items():
            places = [i for i, (of, _) in enumerate(picked) if of == name]
            if places:
                read = source.select_columns(list(columns))[[picked[i][1] for i in places]]
                for k, i in enumerate(places):
                    rows[i] = {**{column: read[column][k] for column in columns}, "source": name}
        splits.add("train", {key: [row[key] for row in rows] for key in (*columns, "source")})
