"""Multiple choice from local files: labels in a second file or a field, and labels that cannot be true."""

import json

import pytest
from datasets import load_from_disk

from tests.toolkit.data.conftest import SHARED
from toolkit.data.datasets.multiple_choice import Spec

PIQA = {"rows": "piqa_valid.jsonl", "labels": "piqa_valid_labels.lst", "question": "goal", "choices": ["sol1", "sol2"]}
ROWS = [{"q": f"Which is {i}?", "options": [f" no{i}", f"yes{i} "], "key": "BA"[i % 2]} for i in range(10)]
FIELD = {"rows": "rows.jsonl", "question": "q", "choices": ["options"], "answer": "key", "label_names": ["A", "B"]}


@pytest.fixture
def piqa(tmp_path):
    """The real files where they are at hand, else some of the same layout."""
    if (SHARED / PIQA["rows"]).is_file():
        return SHARED
    rows = [{"goal": f"Reach {i}", "sol1": f"count to {i}", "sol2": f"sleep {i} hours"} for i in range(20)]
    write(tmp_path, rows, PIQA["rows"])
    (tmp_path / PIQA["labels"]).write_text("".join(f"{i % 2}\n" for i in range(20)))
    return tmp_path


def write(folder, rows, name="rows.jsonl"):
    (folder / name).write_text("\n".join(json.dumps(row) for row in rows))
    return {"files": folder}


def load(artifact):
    return load_from_disk(str(artifact.path / "data"))


def test_piqa_rows_go_with_their_labels(make, piqa):
    artifact = make("multiple_choice", {"files": piqa}, **PIQA)
    lines = (piqa / PIQA["rows"]).read_text().splitlines()
    labels = [int(x) for x in (piqa / PIQA["labels"]).read_text().split()]
    found = list(load(artifact)["heldout"])
    assert len(found) == len(lines) == len(labels)
    for line, label, row in zip(lines, labels, found, strict=True):
        source = json.loads(line)
        assert row["gold"] == (source["sol1"], source["sol2"])[label].strip() == row["choices"][row["gold_index"]]
        assert (
            row["prompt"] == f"Question: {source['goal'].strip()}\nAnswer:" and row["completion"] == " " + row["gold"]
        )
    majority = max(sum(labels), len(labels) - sum(labels)) / len(labels)
    assert artifact.record["metrics"] == {"chance": 0.5, "majority": majority, "rows_heldout": len(lines)}


def test_demonstrations_come_from_rows_that_are_not_scored(make, piqa):
    data = load(make("multiple_choice", {"files": piqa}, train_fraction=0.1, **PIQA))
    whole = load(make("multiple_choice", {"files": piqa}, **PIQA))["heldout"]
    key = [json.dumps(row) for split in data.values() for row in split]
    assert len(data["train"]) == round(len(whole) * 0.1)
    assert sorted(key) == sorted(json.dumps(row) for row in whole)


def test_labels_in_a_field_with_names(make, tmp_path):
    rows = load(make("multiple_choice", write(tmp_path, ROWS), template="{question} =", **FIELD))["heldout"]
    assert rows["gold_index"][:2] == [1, 0] and rows["gold"][:2] == ["yes0", "no1"]
    assert rows["prompt"][0] == "Which is 0? ="


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [{**row, "key": "A"} for row in rows], r"every row of .*rows\.jsonl has the label 0"),
        (lambda rows: [{**row, "key": "-1"} for row in rows], r"rows\.jsonl:1: unknown label '-1'.*never published"),
        (lambda rows: [{"q": "x", "options": ["y", "z"]}], r"rows\.jsonl:1: answer: unknown field 'key'"),
        (lambda rows: [{**rows[0], "options": "yes"}], r"field 'options' must be a list"),
        (lambda rows: [{**rows[0], "options": ["yes"]}], r"at least two choices"),
        (lambda rows: [{**rows[0], "q": None}], r"field 'q' must be a string"),
        (lambda rows: [], r"rows\.jsonl holds no rows"),
    ],
)
def test_bad_rows_are_refused(make, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        make("multiple_choice", write(tmp_path, change(ROWS)), **FIELD)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("0\n1\n", r"labels\.lst has only 2 labels, and .*rows\.jsonl:3 is row 3"),
        ("0\n1\n" * 9, r"labels\.lst has more labels than the 10 rows"),
        ("0\n1\n2\n" + "0\n" * 7, r"labels\.lst:3: unknown label '2'"),
    ],
)
def test_labels_that_do_not_fit_the_rows_are_refused(make, tmp_path, labels, message):
    (tmp_path / "labels.lst").write_text(labels)
    spec = {"rows": "rows.jsonl", "question": "q", "choices": ["options"], "labels": "labels.lst"}
    with pytest.raises(ValueError, match=message):
        make("multiple_choice", write(tmp_path, ROWS), **spec)


def test_a_missing_file_is_named_with_those_that_are_there(make, tmp_path):
    with pytest.raises(ValueError, match=r"rows: unknown file 'row\.jsonl'; did you mean 'rows\.jsonl'"):
        make("multiple_choice", write(tmp_path, ROWS), **FIELD | {"rows": "row.jsonl"})
    with pytest.raises(ValueError, match="is not a folder"):
        make("multiple_choice", {"files": tmp_path / "rows.jsonl"}, **FIELD)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"labels": "x"}, "either answer"),
        ({"answer": None}, "either answer"),
        ({"choices": ()}, "choices must name"),
        ({"template": "Question"}, "needs {question}"),
        ({"template": "{question} "}, "must not end in a space"),
        ({"train_fraction": 1.5}, "train_fraction is 1.5"),
    ],
)
def test_bad_values_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        Spec(**{"dataset": "multiple_choice", **FIELD, **values})
