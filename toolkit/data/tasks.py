"""What the task data sets share. A module of `toolkit.data.datasets` says what its data set is (`ABOUT`) and how a row
of it reads (`row`: text fields, and `choices` with `gold_index`, or `gold`); rows come out with these columns:

    the text fields            as they were published, without the space around them
    prompt, completion         in the template (of several, one is drawn for each row); together they are the text
    prompt_instruct, ...       in the other formats of Amuro & Char (arXiv 2408.06663), where the templates have them
    gold, choices, gold_index  the answer as the template words it; [] and -1 where it is free text
    template                   its name

Splits keep the names they have in the source. Demonstrations for few-shot prompts come from another split than the rows
that are scored: evaluate refuses one split for both, and `shots` sets rows apart where there is only one.
"""

import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from toolkit.data import formats
from toolkit.data.sources import Source, find_splits, rows
from toolkit.data.splits import Splits
from toolkit.lookup import find, unknown
from toolkit.stage import Artifact, Context

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

Row: TypeAlias = dict[str, Any]
PACKAGE = "toolkit.data.datasets"
BATCH = 500


@dataclass(frozen=True, kw_only=True)
class About:
    """What a data set is, for people and for `download`.

    templates: the file in configs/templates, which is also its kind of task. source: who made it. repo, revision,
    files: where it is on the Hub. config: its folder there, where a repository has several. rows: split -> rows as
    published.
    unlabelled: splits whose gold answers were not published, which are not read unless they are asked for.
    """

    source: str
    licence: str
    metric: str
    templates: str
    repo: str
    rows: Mapping[str, int]
    revision: str = "main"
    files: tuple[str, ...] = ()
    config: str = ""
    unlabelled: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Spec:
    """splits: of the source; without them all that have labels. rows: split -> a sample of so many rows, by `seed`.

    shots: rows of the first split that are set apart as the split `shots`. templates: one or more of the file in
        configs/templates, or `all`. files: pattern of the files to read, where a folder holds others too.
    """

    dataset: str
    splits: tuple[str, ...] = ()
    rows: dict[str, int] = field(default_factory=dict)
    shots: int = 0
    templates: tuple[str, ...] = ("default",)
    files: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.shots < 0 or min(self.rows.values(), default=1) < 1:
            raise ValueError(f"rows is {self.rows} and shots {self.shots}; a sample has at least 1 row, and shots 0")
        stray = [name for name in self.rows if self.splits and name not in self.splits]
        if stray:
            raise ValueError(f"rows: {unknown('split', stray[0], self.splits)}")
        formats.chosen(describe(self.dataset).templates, self.templates)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """files: the download of the data set, or a folder or file of yours with the same fields."""

    files: Artifact


def describe(dataset: str) -> About:
    """What a task data set says of itself.

    Raises:
        ValueError: no such data set.
    """
    found: About = find(PACKAGE, dataset, "dataset").ABOUT
    return found


def fill(
    about: About, row: Callable[[Source], Row], spec: Spec, inputs: Inputs, splits: Splits, ctx: Context
) -> dict[str, Any]:
    """Metrics of each split: `source_rows` and `published_rows` (if they differ, the files are not the whole data set),
    `unlabelled` (rows that were left out for want of a label), and of choice tasks `majority`, the share of the most
    frequent answer.

    Raises:
        ValueError: no such split, too few rows, gold answers that were not published or are all the same.
    """
    path = inputs.files.path
    source = find_splits(path, about.config, spec.files)
    names = spec.splits or tuple(name for name in source if name not in about.unlabelled)
    for name in (*names, *spec.rows):
        if name not in source:
            raise ValueError(f"{path}: {unknown('split', name, source)}")
    templates = formats.chosen(about.templates, spec.templates)
    metrics: dict[str, Any] = {}
    for i, name in enumerate(names):
        total, labelled = _count(source[name], row, name, spec)
        taken = _draw(labelled, name, spec, set_apart=spec.shots if i == 0 else 0)
        found = _add(spec, taken, templates, _labelled(source[name], row), splits, ctx)
        metrics |= {f"source_rows_{name}": total, f"unlabelled_{name}": total - labelled}
        metrics |= {f"published_rows_{name}": about.rows[name]} if name in about.rows else {}
        metrics |= {f"majority_{split}": share for split, share in found.items()}
    return metrics


def peek(dataset: str, path: Path, split: str, template: str, count: int) -> list[Row]:
    """The first rows of a split ("": the first there is) in a template, for a look at them.

    Raises:
        ValueError: no such split or template, or rows that cannot be read.
    """
    module = find(PACKAGE, dataset, "dataset")
    templates = formats.chosen(module.ABOUT.templates, [template])
    source = find_splits(path, module.ABOUT.config, None)
    name = split or next(iter(source))
    if name not in source:
        raise ValueError(f"{path}: {unknown('split', name, source)}")
    found = islice(_labelled(source[name], module.row), count)
    return [
        {**row, **vars(formats.render(kind, row)), "template": name}
        for row in found
        for name, kind in templates.items()
    ]


def _complete(row: Row) -> Row | None:
    """A row with its gold answer; None where that was not published."""
    found = {"choices": [], "gold_index": -1, **row}
    if found["choices"] and "gold" not in found:
        found["gold"] = found["choices"][found["gold_index"]] if found["gold_index"] >= 0 else ""
    return found if found["gold"] else None


def _labelled(members: list[Path], row: Callable[[Source], Row]) -> Iterator[Row]:
    return (found for source in rows(members) if (found := _complete(row(source))) is not None)


def _count(members: list[Path], row: Callable[[Source], Row], name: str, spec: Spec) -> tuple[int, int]:
    """(rows, rows with a gold answer) of a split."""
    total = labelled = 0
    for source in rows(members):
        total += 1
        labelled += _complete(row(source)) is not None
    if total and not labelled:
        raise ValueError(
            f"none of the {total} rows of split {name!r} of {spec.dataset} has a gold answer: its labels were not "
            "published (they are -1 or empty), and a model that always says so would score 1.0; use a split with labels"
        )
    return total, labelled


def _draw(labelled: int, name: str, spec: Spec, set_apart: int) -> "dict[str, np.ndarray]":
    """Split -> the numbers of its rows, ascending. A seed draws the same rows of a split, whatever the other splits."""
    import numpy as np

    wanted = spec.rows.get(name, labelled - set_apart)
    if set_apart + wanted > labelled or wanted < 1:
        apart = f" beside {set_apart} shots" if set_apart else ""
        raise ValueError(f"split {name!r} of {spec.dataset} has {labelled} labelled rows, too few for {wanted}{apart}")
    order = np.random.default_rng([spec.seed, zlib.crc32(name.encode())]).permutation(labelled)
    taken = {"shots": order[:set_apart], name: order[set_apart : set_apart + wanted]}
    return {split: np.sort(numbers) for split, numbers in taken.items() if len(numbers)}


def _add(
    spec: Spec,
    taken: "dict[str, np.ndarray]",
    templates: Mapping[str, formats.Template],
    read: Iterator[Row],
    splits: Splits,
    ctx: Context,
) -> dict[str, float]:
    """Add the drawn rows to their splits; returns the share of the most frequent answer where answers are chosen."""
    import numpy as np

    paper = formats.paper(describe(spec.dataset).templates) if spec.templates == ("default",) else {}
    where = {int(number): split for split, numbers in taken.items() for number in numbers}
    answers: dict[str, Counter[Any]] = {split: Counter() for split in taken}
    phrasing = {split: np.random.default_rng([spec.seed, len(numbers)]) for split, numbers in taken.items()}
    drawn = ((where[i], row) for i, row in enumerate(read) if i in where)
    done = 0
    while batch := list(islice(drawn, BATCH)):
        for split in taken:
            members = [_render(row, templates, paper, phrasing[split]) for name, row in batch if name == split]
            answers[split].update(row["gold"] if row["gold_index"] < 0 else row["gold_index"] for row in members)
            if members:
                splits.add(split, _table(members))
        done += len(batch)
        ctx.progress(done, len(where), unit="row")
    for split, counts in answers.items():
        if len(counts) == 1 and counts.total() > 1:
            raise ValueError(
                f"all {counts.total()} rows of split {split!r} of {spec.dataset} have the same gold answer "
                f"({next(iter(counts))!r}): a model that always says it would score 1.0; take more rows or other ones"
            )
    return {s: max(c.values()) / c.total() for s, c in answers.items() if all(isinstance(key, int) for key in c)}


def _render(
    row: Row,
    templates: Mapping[str, formats.Template],
    paper: Mapping[str, formats.Template],
    rng: "np.random.Generator",
) -> Row:
    """A row in one of the templates, and beside it in the paper's other formats."""
    name = list(templates)[int(rng.integers(len(templates)))]
    found = {**row, **vars(formats.render(templates[name], row)), "template": name}
    for other, template in paper.items():
        said = formats.render(template, row)
        found |= {f"prompt_{other}": said.prompt, f"completion_{other}": said.completion}
    return found


def _table(members: list[Row]) -> "pa.Table":
    """The rows as Arrow; types are given, since the first rows alone may have empty lists."""
    import pyarrow as pa

    types = {"choices": pa.list_(pa.string()), "gold_index": pa.int64()}
    columns = {name: pa.array([row[name] for row in members], types.get(name)) for name in members[0]}
    return pa.table(columns)
