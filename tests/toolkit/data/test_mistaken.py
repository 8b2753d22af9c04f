"""Pairs of a right and a wrong answer: of the same kind of question, of every split, the same each time."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from toolkit.data.datasets import mistaken
from toolkit.data.splits import Splits, open_data
from toolkit.stage import Artifact, Context

ANSWERS = [" Rome", " Oslo", " Rome", " Bonn", " law", " art"]
KINDS = ["city"] * 4 + ["major"] * 2


def made(folder: Path, columns: dict[str, Any], **spec: Any) -> tuple[DatasetDict, dict[str, Any]]:
    source = folder / "source"
    DatasetDict({"train": Dataset.from_dict(columns), "text": Dataset.from_dict({"text": ["x"]})}).save_to_disk(
        str(source / "data")
    )
    splits = Splits(folder / "data")
    inputs = mistaken.Inputs(data=Artifact(path=source))
    metrics = mistaken.fill(mistaken.Spec(dataset="mistaken", **spec), inputs, splits, Context(state=folder))
    splits.finish()
    return open_data(folder), metrics


def columns(**more: Any) -> dict[str, Any]:
    return {"prompt": [f"{i}?" for i in range(6)], "completion": ANSWERS, **more}


def test_wrong_answers_are_of_the_same_kind(tmp_path: Path) -> None:
    data, metrics = made(tmp_path, columns(attribute=KINDS), pairs=5)
    assert list(data) == ["train"] and metrics == {"alone": 0}
    found = {(row["prompt"], row["chosen"], row["rejected"]) for row in data["train"]}
    right = [(f"{i}?", answer, kind) for i, (answer, kind) in enumerate(zip(ANSWERS, KINDS, strict=True))]
    all_of = {"city": {" Rome", " Oslo", " Bonn"}, "major": {" law", " art"}}
    assert found == {(p, answer, wrong) for p, answer, kind in right for wrong in all_of[kind] - {answer}}


def test_one_pair_a_row_drawn_by_the_seed(tmp_path: Path) -> None:
    (one, _), (two, _), (other, _) = (
        made(tmp_path / str(i), columns(), seed=seed) for i, seed in enumerate((0, 0, 1))
    )  # fmt: skip
    assert one["train"]["chosen"][:] == ANSWERS
    assert one["train"]["rejected"][:] == two["train"]["rejected"][:] != other["train"]["rejected"][:]


def test_rows_without_another_answer_and_data_without_answers(tmp_path: Path) -> None:
    _, metrics = made(tmp_path / "a", columns(attribute=["city"] * 4 + ["major", "sport"]))
    assert metrics == {"alone": 2}
    with pytest.raises(ValueError, match="no split has the columns 'prompt' and 'completion'"):
        made(tmp_path / "b", {"text": ["a"]})
    with pytest.raises(ValueError, match="pairs is 0"):
        mistaken.Spec(dataset="mistaken", pairs=0)
