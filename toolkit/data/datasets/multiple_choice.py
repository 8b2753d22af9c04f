"""Multiple-choice questions from local files (PIQA and the like).

The rows are a .jsonl or .json file of a folder; the right choice stands in a field, or line by line in a second file.
Columns: `prompt`, `choices`, `gold_index`, `completion`, `gold`. Demonstrations for few-shot prompts must not be rows
that are scored: `train_fraction` sets some apart in `train`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.data import files
from toolkit.data.divide import add_rows, check_shares, divide
from toolkit.data.splits import Splits
from toolkit.lookup import unknown
from toolkit.stage import Artifact, Context


@dataclass(frozen=True, kw_only=True)
class Spec:
    """rows: the file with the questions, relative to the folder.

    question: field with the question. choices: the fields with the choices, or one field that holds their list.
    answer, labels: the field with the right choice, or the file with one label a line; exactly one of them.
    label_names: the labels in the order of the choices, such as A, B, C, D; without them labels count from 0.
    template: what a prompt looks like; `{question}` stands for the question.
    train_fraction: share of the rows, drawn at random by `seed`, that goes to `train`; the others are `heldout`.
    """

    dataset: str
    rows: str
    question: str
    choices: tuple[str, ...]
    answer: str | None = None
    labels: str | None = None
    label_names: tuple[str, ...] = ()
    template: str = "Question: {question}\nAnswer:"
    train_fraction: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.answer is None) == (self.labels is None):
            raise ValueError("give either answer (a field of the rows) or labels (a file with one label a line)")
        if not self.choices:
            raise ValueError("choices must name the fields with the choices, or one field that holds their list")
        if "{question}" not in self.template or self.template.endswith(" "):
            raise ValueError(
                f"template is {self.template!r}; it needs {{question}} and must not end in a space, which tokenizers "
                "put at the beginning of the answer"
            )
        check_shares(train_fraction=self.train_fraction)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """files: the folder that holds the files named in the spec."""

    files: Artifact


def fill(spec: Spec, inputs: Inputs, splits: Splits, ctx: Context) -> dict[str, Any]:
    """Metrics: `chance`, the mean of 1 / number of choices, and `majority`, the share of the most frequent label."""
    rows = list(_rows(spec, inputs.files.path))
    if not rows:
        raise ValueError(f"{inputs.files.path / spec.rows} holds no rows")
    gold = [row["gold_index"] for row in rows]
    if len(set(gold)) == 1:
        raise ValueError(
            f"every row of {inputs.files.path / spec.rows} has the label {gold[0]}: test labels that were not "
            "published look like that, and any model that always says so would score 1.0; use a split with real labels"
        )
    division = divide(len(rows), "heldout", {"train": spec.train_fraction}, spec.seed, str(inputs.files.path))
    add_rows(splits, rows, division, "row", ctx)
    return {
        "chance": sum(1 / len(row["choices"]) for row in rows) / len(rows),
        "majority": max(map(gold.count, set(gold))) / len(gold),
    }


def _rows(spec: Spec, folder: Path) -> Iterator[dict[str, Any]]:
    labels = _labels(spec, folder)
    count = 0
    for place, row in files.read_rows(_file(folder, spec.rows, "rows")):
        label, where = (row.get(spec.answer), place) if spec.answer is not None else next(labels, (None, ""))
        if spec.answer is not None and spec.answer not in row:
            raise ValueError(f"{place}: answer: {unknown('field', spec.answer, row)}")
        count += 1
        if not where:
            raise ValueError(f"{folder / str(spec.labels)} has only {count - 1} labels, and {place} is row {count}")
        yield _row(spec, row, place, label, where)
    if next(labels, None) is not None:
        raise ValueError(f"{folder / str(spec.labels)} has more labels than the {count} rows of {folder / spec.rows}")


def _row(spec: Spec, row: Mapping[str, Any], place: str, label: Any, where: str) -> dict[str, Any]:
    question = files.text_field(dict(row), spec.question, place).strip()
    choices = _choices(spec, dict(row), place)
    index = _index(spec, label, len(choices), where)
    return {
        "prompt": spec.template.replace("{question}", question),
        "completion": f" {choices[index]}",
        "gold": choices[index],
        "choices": choices,
        "gold_index": index,
    }


def _choices(spec: Spec, row: dict[str, Any], place: str) -> list[str]:
    only = spec.choices[0]
    if len(spec.choices) > 1:
        found = [files.text_field(row, name, place) for name in spec.choices]
    elif only in row and isinstance(row[only], list) and all(isinstance(c, str) for c in row[only]):
        found = row[only]
    else:
        raise ValueError(f"{place}: choices: field {only!r} must be a list of strings: {files.show(row)}")
    if len(found) < 2:
        raise ValueError(f"{place}: a question needs at least two choices: {files.show(row)}")
    return [choice.strip() for choice in found]


def _index(spec: Spec, label: Any, choices: int, where: str) -> int:
    """The number of the right choice, from 0."""
    names = spec.label_names or tuple(map(str, range(choices)))
    text = str(label).strip()
    if isinstance(label, bool) or text not in names or names.index(text) >= choices:
        hint = "; the label was probably never published" if text == "-1" else ""
        raise ValueError(f"{where}: {unknown('label', text, names[:choices])}{hint}")
    return names.index(text)


def _labels(spec: Spec, folder: Path) -> Iterator[tuple[str, str]]:
    """(label, its place) of the labels file."""
    if spec.labels is None:
        return
    path = _file(folder, spec.labels, "labels")
    for number, line in enumerate(files.read_lines(path), 1):
        if line.strip():
            yield line.strip(), f"{path}:{number}"


def _file(folder: Path, name: str, what: str) -> Path:
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give the folder that holds {name!r}")
    if not (folder / name).is_file():
        raise ValueError(f"{what}: {unknown('file', name, (p.name for p in folder.iterdir() if p.is_file()))}")
    return folder / name
