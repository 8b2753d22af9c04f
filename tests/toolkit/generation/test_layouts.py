"""Texts with their pairs as documents: what is kept, what is left out, and how many forms there are.

Control flow as in microsoft/LMOps, instruction_pretrain/utils: cook_pt_entries and parse_QA_list; the layouts are ours.
"""

import pytest

from toolkit.generation.layouts import OPTIONS, REASONS, THEREFORE, Style, augment, draw, readable
from toolkit.generation.synthesis import Pair

PAIRS = [Pair(question="Who wrote it?", answer="Ada."), Pair(question="Where?", answer="In Rome.")]


def style(seed: int = 0) -> Style:
    return draw(seed, 1)


@pytest.mark.parametrize(
    "question, answer, kept",
    [
        ("Who?", "Ada.", True),
        ("Why?" + REASONS, "It rains." + THEREFORE + "rain.", True),
        ("Why?" + REASONS, "rain.", False),  # no reasons
        ("Why?", "It rains." + THEREFORE + "rain.", False),  # reasons that nobody asked for
        ("Why?" + REASONS, THEREFORE + "rain.", False),
        (REASONS, "It rains." + THEREFORE + "rain.", False),  # no question
        ("Which?" + OPTIONS + "this\n- that", "this", True),
        ("Which?" + OPTIONS + "this" + OPTIONS + "that", "this", False),  # options twice
        (OPTIONS + "this", "this", False),
        ("Which?" + OPTIONS + "this\n- that" + REASONS, "It is." + THEREFORE + "this", True),
    ],
)
def test_pairs_that_are_marked_as_something_must_be_it(question: str, answer: str, kept: bool) -> None:
    found = readable(Pair(question=question, answer=answer), style())
    assert (found is not None) == kept
    if found is not None:
        words = found.question + found.answer
        assert REASONS not in words and THEREFORE not in words and OPTIONS.strip("\n") not in found.question[:3]


def test_every_word_of_a_chain_is_in_one_document_in_order() -> None:
    for seed in range(300):
        (document,) = augment([("First text.", PAIRS), ("Second text.", PAIRS[:1])], seed)
        assert document.index("First text.") < document.index("Second text.")
        assert document.count("Who wrote it?") == 2 and document.count("Ada.") == 2 and document.count("In Rome.") == 1


def test_a_text_without_pairs_is_a_document_as_it_stands() -> None:
    assert augment([("Alone.", [])], 0) == ["Alone."]
    bad = [Pair(question="Why?" + REASONS, answer="no reasons")]
    documents = augment([("Text.", PAIRS), ("Other.", bad)], 0)
    assert documents[1] == "Other." and "Other." not in documents[0]


def test_many_layouts_the_plain_way_mostly_and_the_same_for_the_same_seed() -> None:
    texts = [("First text.", PAIRS), ("Second text.", PAIRS)]
    documents = [augment(texts, seed)[0] for seed in range(400)]
    assert documents == [augment(texts, seed)[0] for seed in range(400)] and len(set(documents)) > 150
    ways = [draw(seed, 2).way for seed in range(2000)]
    assert ways.count("plain") > 1500 and {"dialogue", "numbered", "before"} < set(ways)
    assert "numbered" not in {draw(seed, 1).way for seed in range(2000)}, "one question needs no number"


def test_braces_in_a_text_are_text() -> None:
    text, pair = "A set {x} and {}.", Pair(question="What is {x}?", answer="{} is empty {why} {n}")
    for seed in range(60):
        assert text in augment([(text, [pair])], seed)[0] and pair.answer in augment([(text, [pair])], seed)[0]
