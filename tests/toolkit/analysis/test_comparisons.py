"""The comparisons of the report are those of `paired.compare` on the items, one family for Holm."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from toolkit.analysis.bases import base_of
from toolkit.analysis.comparisons import comparisons, pairs, seed_spreads
from toolkit.analysis.paired import compare
from toolkit.analysis.seeds import spread
from toolkit.analysis.stats import holm

from .fake_study import DONE, FakeStudy


def right(model: str, step: int, seed: int) -> list[bool]:
    level = 0.3 + 0.4 * (model == "tuned") + 0.02 * step
    return (np.random.default_rng([len(model), step, seed]).random(80) < level).tolist()


@pytest.fixture
def graded(tmp_path: Path) -> FakeStudy:
    study = FakeStudy(root=tmp_path, axes=("step", "model", "seed"))
    for step in (1, 2):
        for model in ("checkpoint", "tuned"):
            for seed in (0, 1):
                cell = study.add("scores", "evaluate", DONE, coords={"step": step, "model": model, "seed": seed})
                said = {"task": ["piqa"] * 80, "doc_id": list(range(80)), "filter": ["none"] * 80, "gold": ["g"] * 80}
                study.commit(cell, items={**said, "correct": right(model, step, seed)})
    return study


def test_pairs_differ_in_one_axis_and_checkpoints_follow_each_other(graded: FakeStudy) -> None:
    found = pairs(graded.cells, graded.folders, ("model", "checkpoint"), "step")
    assert [(p.axis, p.place) for p in found[:2]] == [
        ("model", "scores: step 1, seed 0"),
        ("model", "scores: step 1, seed 1"),
    ]
    assert {(p.one.coords["model"], p.two.coords["model"]) for p in found[:4]} == {("checkpoint", "tuned")}
    assert [p.axis for p in found[4:]] == ["step"] * 4 and len(found) == 8
    assert {(p.one.coords["step"], p.two.coords["step"]) for p in found[4:]} == {(1, 2)}


def test_a_page_is_one_family(graded: FakeStudy) -> None:
    found = comparisons(pairs(graded.cells, graded.folders, ("model", "checkpoint"), "step"), graded.folders)
    alone = [compare(right("checkpoint", 1, 0), right("tuned", 1, 0)), found.rows[0].found]
    assert alone[0] == alone[1] and found.rows[0].verdict == "better" and found.left_out == 0
    assert [row.p_holm for row in found.rows] == pytest.approx(holm([row.found.p for row in found.rows]).tolist())


def test_cells_that_do_not_pair_are_told(graded: FakeStudy) -> None:
    path = graded.folders[graded.cells[0].fingerprint] / "items.parquet"
    other = pq.read_table(path)
    pq.write_table(other.set_column(other.schema.get_field_index("gold"), "gold", pa.array(["h"] * 80)), path)
    found = comparisons(pairs(graded.cells, graded.folders, None, "step"), graded.folders)
    assert len(found.rows) == 6 and any("these are not the same questions" in note for note in found.notes)
    seeds, notes = seed_spreads(graded.cells, graded.folders)
    assert len(seeds) == 3 and "no spread between seeds: item 0 has the gold answer" in notes[0]


def test_seeds_are_no_alternatives(graded: FakeStudy) -> None:
    found, notes = seed_spreads(graded.cells, graded.folders)
    assert not notes and [one.place for one in found][0] == "scores: step 1, model checkpoint" and len(found) == 4
    scores = np.array([right("checkpoint", 1, 0), right("checkpoint", 1, 1)], float)
    assert found[0].found == spread(scores)


def test_the_base_is_the_stage_that_the_others_are_made_from(study: FakeStudy, table: pa.Table) -> None:
    assert base_of(study.cells, table) == ("model", "checkpoint")
    plain = pa.table({"stage": ["p"] * 2, "train": ["tulu", "base"], "task": ["t"] * 2, "metric": ["acc"] * 2})
    assert base_of([], plain) == ("train", "base") and base_of([], plain.slice(0, 1)) is None
