from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from toolkit.analysis.guards import (
    chance,
    fewer_items,
    findings,
    one_harness,
    perfect_before_training,
    shared_scores,
    single_class,
)
from toolkit.analysis.items import metrics, pair, parts, read, shared_tasks, stack
from toolkit.analysis.table import measure

from .fake_study import FakeStudy


def long(rows: list[dict[str, Any]]) -> pa.Table:
    plain = {"stage": "scores", "job": "evaluate", "step": 0, "model": "m", "task": "t", "metric": "acc", "value": 0.5,
             "stderr": None, "n": None, "state": "done", "reason": None, "fingerprint": "0" * 12}  # fmt: skip
    return pa.Table.from_pylist([{**plain, **row} for row in rows])


def test_scores_that_models_share_are_told_and_how_likely_chance_is() -> None:
    """Four models with random weights in place of their own: equal to five decimals, of which two would be chance."""
    same = long([{"model": name, "value": 0.327306, "n": 9815, "stderr": 0.0047} for name in "abcd"])
    (told,) = shared_scores(same)
    assert "4 models have acc 0.32731 on t" in told and "scores step 0 model a; scores step 0 model b" in told
    assert float(told.split("by chance: ")[1].rstrip(")")) < 1e-5
    few = long(
        [{"model": name, "value": value, "n": 50} for name, value in zip("abcdef", (0.5, 0.5, 0.4, 0.44, 0.6, 0.58))]
    )
    (told,) = shared_scores(few)
    assert float(told.split("by chance: ")[1].rstrip(")")) > 0.5
    assert shared_scores(long([{"model": "a", "value": 0.0}, {"model": "b", "value": 0.0}])) == []
    assert shared_scores(long([{"model": "a", "value": 0.5}, {"model": "b", "value": 0.50002}])) == []


def test_a_model_ties_with_itself_at_other_shots_in_silence() -> None:
    rows = long([{"value": 0.32731}, {"value": 0.32731}]).append_column("shots", pa.array([0, 4]))
    assert shared_scores(rows) == []


def test_a_perfect_score_before_training_is_told() -> None:
    rows = [
        {"step": 0, "value": 0.99999, "task": "qqp"},
        {"step": 0, "task": "piqa"},
        {"step": 9, "value": 1.0, "task": "piqa"},
    ]
    assert perfect_before_training(long(rows)) == [
        "acc of qqp is 0.99 or more at step 0 already: are all its gold answers one class?"
    ]
    assert perfect_before_training(long([{"step": 0, "metric": "f1", "value": 1.0}])) == []


def test_fewer_items_than_the_task_has_are_told() -> None:
    (told,) = fewer_items(
        long([{"n": 1000}, {"n": 1000, "model": "b"}, {"n": 80, "model": "c"}, {"n": 5, "task": "u"}])
    )
    assert told.startswith("acc of t is of 1000 items in 2 rows and of fewer (80) in 1")
    assert fewer_items(long([{"n": 1000, "job": "published"}, {"n": 80}, {"n": 80, "model": "b"}])) == []


def test_nothing_is_told_of_a_sound_table(table: pa.Table) -> None:
    assert [f for f in findings(table) if "by chance" not in f] == []
    one_harness(table)


def test_two_versions_of_a_harness_are_refused(own_study: FakeStudy) -> None:
    scored = [c for c in own_study.cells if c.stage == "scores" and own_study.states[c.fingerprint].state == "done"]
    for i, cell in enumerate(scored):
        path = own_study.folders[cell.fingerprint] / "artifact.json"
        path.write_text(path.read_text().replace('"torch"', f'"lm_eval": "0.4.{13 if i else 12}", "torch"'))
    table = measure(**own_study.arguments())
    with pytest.raises(
        ValueError, match=r"was scored by lm_eval 0.4.12 and by lm_eval 0.4.13: numbers of two harnesses"
    ):
        one_harness(table)
    with pytest.raises(ValueError, match="'acc' of task"):
        one_harness(table, metric="acc")
    one_harness(table, metric="f1")
    others = table.filter(pa.compute.not_equal(table["fingerprint"], scored[0].fingerprint[:12]))
    one_harness(others)


def test_two_versions_of_a_task_are_refused(own_study: FakeStudy) -> None:
    """Rows that do not tell the version, which were written before there was one, do not count as another."""
    scored = [c for c in own_study.cells if c.stage == "scores" and own_study.states[c.fingerprint].state == "done"]
    assert len(scored) > 3
    for version, cell in zip(("1.0 aaaaaaaa", None, *["1.0 bbbbbbbb"] * len(scored)), scored):
        folder = own_study.folders[cell.fingerprint]
        record = folder / "artifact.json"
        record.write_text(
            record.read_text()
            .replace('"torch"', '"lm_eval": "0.4.13", "torch"')
            .replace('"spec": {', '"spec": {"tasks": ["piqa"], ')
        )
        rows = pq.read_table(folder / "rows.parquet")
        told = [version if task == "piqa" else "2.0 cccccccc" for task in rows["task"].to_pylist()]
        pq.write_table(rows.append_column("version", pa.array(told, pa.string())), folder / "rows.parquet")
    table = measure(**own_study.arguments())
    with pytest.raises(ValueError, match=r"'acc' of task 'piqa' .*lm_eval 0.4.13, task 1.0 aaaaaaaa and by .*bbbbbbbb"):
        one_harness(table)
    one_harness(table.filter(pa.compute.not_equal(table["fingerprint"], scored[0].fingerprint[:12])))
    one_harness(table.filter(pa.compute.not_equal(table["task"].cast(pa.string()), "piqa")))


ITEMS = pa.Table.from_pylist(
    [
        {"task": t, "doc_id": i, "filter": "none", "gold": g, "correct": g == "a", "loglikelihoods": ll, "f1": 0.1 * i}
        for t, golds, ll in (("one", "aaaa", [-1.0, -2.0]), ("two", "abab", [-1.0, -2.0, -3.0, -4.0]), ("text", "ab", None))
        for i, g in enumerate(golds)
    ]
)  # fmt: skip


def test_gold_answers_of_one_class_are_told_and_chance_is_known() -> None:
    assert single_class(ITEMS) == ["all 4 items of one have one gold answer: a score on them says nothing"]
    assert chance(ITEMS) == {"one": 0.5, "two": 0.25}


def test_items_go_together_by_document(tmp_path: Path) -> None:
    first = ITEMS.filter(pa.compute.equal(ITEMS["task"], "two"))
    second = first.take([3, 1, 0])
    found = pair(first, second)
    assert (found.first.tolist(), found.second.tolist(), found.metric) == ([1, 0, 0], [1, 0, 0], "correct")
    assert found.alone == 1 and pair(first, second, "f1").first.tolist() == pytest.approx([0, 0.1, 0.3])
    with pytest.raises(ValueError, match="unknown metric 'f2'; did you mean 'f1'"):
        pair(first, second, "f2")
    other = second.set_column(second.schema.get_field_index("gold"), "gold", pa.array(["b", "b", "c"]))
    with pytest.raises(ValueError, match="item 0 has the gold answer 'a' in one cell and 'c' in the other"):
        pair(first, other)
    with pytest.raises(ValueError, match="share no item"):
        pair(first.slice(0, 2), first.slice(2))
    for name, items in (("a", ITEMS), ("b", first)):
        (tmp_path / name).mkdir()
        pq.write_table(items, tmp_path / name / "items.parquet")
    assert shared_tasks(tmp_path / "a", tmp_path / "b") == ["two"] and read(tmp_path / "a", "one").num_rows == 4
    with pytest.raises(ValueError, match="keeps no items"):
        read(tmp_path, "one")


def test_a_task_with_several_filters_is_compared_by_each() -> None:
    two = ITEMS.filter(pa.compute.equal(ITEMS["task"], "two"))
    strict = two.set_column(two.schema.get_field_index("filter"), "filter", pa.array(["strict"] * 4))
    both = pa.concat_tables([ITEMS, strict])
    found = parts([both, both.filter(pa.compute.not_equal(both["task"], "text"))])
    assert {name: [side.num_rows for side in sides] for name, sides in found.items()} == {
        "one": [4, 4], "two/none": [4, 4], "two/strict": [4, 4],
    }  # fmt: skip
    assert list(parts([both, ITEMS])) == ["one", "two", "text"]
    assert pair(*found["two/strict"]).first.tolist() == [1, 0, 1, 0] and metrics(*found["one"]) == ["correct", "f1"]
    with pytest.raises(ValueError, match="several filters: none, strict"):
        pair(*[both.filter(pa.compute.equal(both["task"], "two"))] * 2)


def test_runs_are_stacked_by_document_for_the_spread_between_seeds() -> None:
    first = ITEMS.filter(pa.compute.equal(ITEMS["task"], "two"))
    wrong = first.set_column(first.schema.get_field_index("correct"), "correct", pa.array([False] * 4))
    scores = stack([first, wrong.take([2, 0, 1]), first.take([3, 2, 1, 0])])
    assert scores.tolist() == [[1, 0, 1], [0, 0, 0], [1, 0, 1]]
    with pytest.raises(ValueError, match="1 runs: the spread between runs needs two"):
        stack([first])
