"""Answers do not depend on batching, and stop where they should."""

import pytest
import torch

from tests.toolkit.generation.tiny import Tiny
from toolkit.data.splits import open_split
from toolkit.generation.engine import Answer, Decoding, Engine, batches
from toolkit.generation.models import end_tokens, load
from toolkit.generation.rows import Row, tokenize

NEW = 10


@pytest.fixture(scope="module")
def rows(tiny: Tiny) -> list[Row]:
    split = open_split(tiny.people.path, "heldout", ["prompt"])
    prompts = [prompt[: 8 + 5 * (i % 8)] for i, prompt in enumerate(split["prompt"])]
    return tokenize(load(tiny.model.path, "fp32", 1)[1], prompts, "plain")


def answers(tiny: Tiny, rows: list[Row], budget: int, **how: object) -> list[Answer]:
    model, tokenizer = load(tiny.model.path, "fp32", 1)
    ends = tuple(end_tokens(tiny.model.path, tokenizer))
    engine = Engine(model, tokenizer, Decoding(max_new_tokens=NEW, ends=ends, **how))  # type: ignore[arg-type]
    found = [a for batch in batches(rows, budget, NEW, step=10**6) for a in engine.answer(batch)]
    return sorted(found, key=lambda a: a.id)


def test_batches_hold_the_budget_and_every_row_once(rows: list[Row]) -> None:
    for budget in (1, 60, 150, 10**6):
        found = batches(rows, budget, NEW, step=10**6)
        assert sorted(row.id for batch in found for row in batch) == [row.id for row in rows]
        lengths = [len(row.tokens) for batch in found for row in batch]
        assert lengths == sorted(lengths, reverse=True)
        for batch in found:
            assert len(batch) == 1 or len(batch) * (len(batch[0].tokens) + NEW) <= budget
    assert len(batches(rows, 10**6, NEW, step=10**6)) == 1


def test_batches_are_cut_where_padding_and_steps_cost_least() -> None:
    lengths = (90, 88, 40, 38, 37, 9, 8, 8, 7, 5)
    rows = [Row(id=i, tokens=(1,) * n) for i, n in enumerate(lengths)]

    def cost(found: list[list[int]], step: int) -> int:
        return sum(len(batch) * (batch[0] + 3) + 3 * step for batch in found)

    def every_way(rest: list[int], budget: int) -> list[list[list[int]]]:
        if not rest:
            return [[]]
        sizes = [n for n in range(1, len(rest) + 1) if n == 1 or n * (rest[0] + 3) <= budget]
        return [[rest[:n], *more] for n in sizes for more in every_way(rest[n:], budget)]

    counts = set()
    for budget in (50, 200, 10**4):
        for step in (0, 10, 50, 10**4):
            found = [[len(row.tokens) for row in batch] for batch in batches(rows[::-1], budget, 3, step)]
            assert cost(found, step) == min(cost(way, step) for way in every_way(sorted(lengths)[::-1], budget))
            counts.add(len(found))
    assert {1, 2, 3} < counts and batches([], 100, 3) == []


def test_greedy_in_padded_batches_equals_plain_generate_of_each_row(tiny: Tiny, rows: list[Row]) -> None:
    model, tokenizer = load(tiny.model.path, "fp32", 1)
    batched = answers(tiny, rows, 10**6)
    assert len({len(row.tokens) for row in rows}) > 2, "rows of one length would need no padding"
    for row, got in zip(rows, batched, strict=True):
        ids = torch.tensor([row.tokens])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False)[0]
        assert got.text == tokenizer.decode(out[len(row.tokens) :], skip_special_tokens=True)
        assert got.tokens == len(out) - len(row.tokens)
        assert got.ended == (out[-1].item() == tokenizer.eos_token_id)


def test_sampled_answers_depend_on_seed_and_not_on_batching(tiny: Tiny, rows: list[Row]) -> None:
    one = answers(tiny, rows, 1, temperature=1.5, top_p=0.95, seed=4)
    assert one == answers(tiny, rows, 10**6, temperature=1.5, top_p=0.95, seed=4)
    assert one == answers(tiny, rows, 80, temperature=1.5, top_p=0.95, seed=4)
    assert one[3:5] == answers(tiny, rows[3:5], 80, temperature=1.5, top_p=0.95, seed=4)
    assert one != answers(tiny, rows, 1, temperature=1.5, top_p=0.95, seed=5)


def test_a_very_low_temperature_is_greedy(tiny: Tiny, rows: list[Row]) -> None:
    assert answers(tiny, rows, 80, temperature=1e-4) == answers(tiny, rows, 80)


def test_stop_strings_end_an_answer_and_are_cut_off(tiny: Tiny, rows: list[Row]) -> None:
    free = answers(tiny, rows, 80)
    stopped = answers(tiny, rows, 80, stop=("i", "or"))
    assert any("i" in a.text or "or" in a.text for a in free)
    for before, after in zip(free, stopped, strict=True):
        positions = [p for p in (before.text.find("i"), before.text.find("or")) if p >= 0]
        assert after.text == (before.text[: min(positions)] if positions else before.text)
        assert after.tokens <= before.tokens and (after.ended or not positions)


def test_a_stop_string_may_stay(tiny: Tiny, rows: list[Row]) -> None:
    cut, kept = answers(tiny, rows, 80, stop=("i", "or")), answers(tiny, rows, 80, stop=("i", "or"), keep_stop=True)
    assert any(a != b for a, b in zip(cut, kept, strict=True))
    for without, with_it in zip(cut, kept, strict=True):
        assert with_it.text in (without.text, without.text + "i", without.text + "or")
