"""Choices for a cloze question: the right one is there once, the rest have the same attribute, and rows keep theirs."""

import pytest
from datasets import Dataset

from tests.toolkit.generation.tiny import CITIES, FIELDS, NAMES, people
from toolkit.evaluation.local import with_choices


def test_choices() -> None:
    rows = with_choices(Dataset.from_list(people(NAMES)))
    for row in rows:
        assert row["choices"][row["gold_index"]] == row["completion"]
        assert len(set(row["choices"])) == len(row["choices"]) == 4
        pool = CITIES if row["attribute"] == "city" else FIELDS
        assert {choice.strip(" .") for choice in row["choices"]} <= set(pool)
    assert len(set(rows["gold_index"])) == 4, "the right choice must not always stand in one place"


def test_a_row_keeps_its_choices_whatever_the_order_of_the_rows() -> None:
    rows = people(NAMES)
    forward, backward = with_choices(Dataset.from_list(rows)), with_choices(Dataset.from_list(rows[::-1]))
    assert forward["choices"][:] == backward["choices"][::-1]


def test_a_pool_of_one_is_refused() -> None:
    rows = [row | {"gold": "Paris"} for row in people(NAMES)]
    with pytest.raises(ValueError, match="every row with attribute 'city' has the gold 'Paris'"):
        with_choices(Dataset.from_list(rows))


def test_a_completion_that_does_not_spell_the_gold() -> None:
    rows = [
        {"prompt": str(i), "completion": f" {text}", "gold": gold}
        for i, (text, gold) in enumerate([("yes", "1"), ("no", "0")])
    ]
    assert {choice for row in with_choices(Dataset.from_list(rows)) for choice in row["choices"]} == {" 1", " 0"}
