"""Biographies: facts are consistent between texts and questions, people unique, splits disjoint, bytes repeatable."""

from collections import Counter

import pytest
from datasets import load_from_disk

from tests.toolkit.data.conftest import content
from toolkit.data.datasets.bios import Spec
from toolkit.data.people import ATTRIBUTES, PARAPHRASES, SENTENCES

SMALL = {"people": 40, "cities": 5, "universities": 4, "majors": 6, "employers": 3, "seed": 7}


def load(artifact):
    return load_from_disk(str(artifact.path / "data"))


def test_every_answer_stands_in_every_biography_of_its_person(make):
    data = load(make("bios", {}, biographies=3, **SMALL))
    questions = [*data["train"], *data["heldout"]]
    assert len(questions) == 40 * 6
    for row in questions:
        texts = [text for text in data["pretrain"]["text"] if row["person"] in text]
        assert len(texts) == 3
        assert all(row["gold"] in text for text in texts)
        assert row["completion"] == " " + row["gold"] and row["prompt"].endswith("Answer:")
        assert row["person"] in row["prompt"]


def test_people_are_unique_and_the_two_halves_are_disjoint(make):
    data = load(make("bios", {}, **SMALL))
    train, heldout = set(data["train"]["person"]), set(data["heldout"]["person"])
    assert len(train) == len(heldout) == 20
    assert not train & heldout


def test_the_employer_decides_the_city_of_work(make):
    data = load(make("bios", {}, **SMALL | {"people": 200}))
    facts = {(r["person"], r["attribute"]): r["gold"] for s in ("train", "heldout") for r in data[s]}
    seats = {(facts[p, "employer"], facts[p, "work_city"]) for p, attribute in facts if attribute == "employer"}
    assert len(seats) == 3


def test_chance_is_the_share_of_the_majority_answer_in_heldout(make):
    artifact = make("bios", {}, ask=["work_city", "major"], **SMALL)
    rows, metrics = list(load(artifact)["heldout"]), artifact.record["metrics"]
    for attribute in ("work_city", "major"):
        counts = Counter(row["gold"] for row in rows if row["attribute"] == attribute)
        assert metrics[f"chance_{attribute}"] == counts.most_common(1)[0][1] / 20
    assert metrics["chance_mean"] == (metrics["chance_work_city"] + metrics["chance_major"]) / 2
    assert "chance_employer" not in metrics and len(rows) == 40


def test_same_seed_same_bytes_other_seed_other_people(make):
    first, again, other = (make("bios", {}, **SMALL | {"seed": seed}) for seed in (7, 7, 8))
    assert content(first) == content(again)
    assert not set(load(first)["train"]["person"]) & set(load(other)["train"]["person"])


def test_order_of_sentences_changes_only_with_permute(make):
    def openings(permute):
        texts = load(make("bios", {}, permute=permute, paraphrases=1, **SMALL))["pretrain"]["text"]
        return {text.split(". ")[0].split(" ", 3)[3].split(" ")[0] for text in texts}

    assert openings(False) == {"was"}  # "<full name> was born on ..."
    assert len(openings(True)) > 3


def test_full_name_leaves_no_pronoun(make):
    for text in load(make("bios", {}, full_name=True, **SMALL))["pretrain"]["text"]:
        name = " ".join(text.split("'s ")[0].split()[:3])
        assert not {"He", "She", "His", "Her", "he", "she", "his", "her", "him"} & set(text.split()), name


def test_questions_of_train_alone_are_mixed_into_pretrain(make):
    data = load(make("bios", {}, qa_in_pretrain=True, **SMALL))
    asked = [text for text in data["pretrain"]["text"] if text.startswith("Question:")]
    assert sorted(asked) == sorted(row["prompt"] + row["completion"] for row in data["train"])
    assert len(data["pretrain"]) == 40 + 120


def test_paraphrases_are_all_different_and_name_value_and_person_once():
    for attribute in ATTRIBUTES:
        assert len(set(SENTENCES[attribute])) == len(SENTENCES[attribute]) >= PARAPHRASES
        for sentence in SENTENCES[attribute]:
            assert sentence.count("{value}") == 1
            assert any(f"{{{word}}}" in sentence for word in ("S", "s", "P", "p", "s_object"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ask": ("birth_town",)}, "unknown attribute 'birth_town'; did you mean 'birth_date'"),
        ({"people": 1}, "at least 2"),
        ({"paraphrases": 9}, "paraphrases is 9; there are 8"),
        ({"cities": 0}, "cities is 0"),
        ({"first_names": 2, "middle_names": 2, "last_names": 2}, "gives only 8"),
        ({"train_fraction": 1.0}, "between 0 and 1"),
    ],
)
def test_bad_values_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        Spec(**{"dataset": "bios", "people": 40, **values})
