"""What merged models keep of their parents: shares that are known, through predictions, in either direction of a metric."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toolkit.analysis.merges import asked, frame, kept, listed
from toolkit.analysis.report import write_report
from toolkit.study import Cell

from .fake_study import DONE, FakeStudy

N = 100


def items(
    right: int | Sequence[float], name: str = "correct", task: str = "all", gold: str = "yes"
) -> dict[str, list[Any]]:
    """N items of a task, of which the first so many are right; or their scores."""
    scores = list(right) if isinstance(right, Sequence) else [i < right for i in range(N)]
    texts = {"filter": ["none"] * N, "prompt": ["?"] * N, "prediction": ["?"] * N, "gold": [gold] * N}
    return {"task": [task] * N, "doc_id": list(range(N)), **texts, "loglikelihoods": [[0.0]] * N, name: scores}


def models(study: FakeStudy, **coords: Any) -> dict[str, Cell]:
    """A base, two that were made from it, and a merge of these at the coordinates."""
    found = {"base": study.add("base", "train", DONE)}
    found |= {name: study.add(name, "train", DONE, inputs={"model": found["base"]}) for name in ("instruct", "trained")}
    found["merged"] = study.add("merged", "merge", DONE, coords=coords, inputs=dict(found))
    return found


def evaluate(study: FakeStudy, model: Cell, found: dict[str, list[Any]], stage: str = "kept", **coords: Any) -> None:
    own = {**model.coords, **coords, "model": model.stage}
    study.commit(study.add(stage, "evaluate", DONE, coords=own, inputs={"model": model}), items=found)


def test_a_share_that_is_known(tmp_path: Path) -> None:
    study = FakeStudy(root=tmp_path)
    made = models(study, scale=0.5)
    for name, right in (("base", 10), ("instruct", 80), ("trained", 20), ("merged", 50)):
        evaluate(study, made[name], items(right), shots=0)
        evaluate(study, made[name], items(40 if name != "merged" else 90), shots=4)
    told, alike = kept(study.cells, study.folders).rows
    assert (told.score, told.merged, told.better.stage, told.weakest.stage) == (
        "kept · shots 0 · all · correct", made["merged"], "instruct", "trained"
    )  # fmt: skip
    assert told.share is not None and told.share[0] == pytest.approx(0.5)
    rng = np.random.default_rng(1)
    sides = np.array([[i < right for i in range(N)] for right in (50, 80, 20)], float)
    drawn = [sides[:, rng.integers(0, N, N)].mean(1) for _ in range(4000)]
    wanted = np.quantile([(m - t) / (i - t) for m, i, t in drawn], (0.025, 0.975))
    assert told.share[1:] == pytest.approx(tuple(wanted), abs=0.02)
    assert told.against.difference == pytest.approx(-0.3) and told.verdict == "worse"
    assert alike.share is None and alike.verdict == "better" and alike.against.difference == pytest.approx(0.5)
    low, high = sorted((told, alike), key=lambda one: one.against.p)  # Holm: twice the least, the other not below it
    assert low.p_holm == pytest.approx(2 * low.against.p)
    assert high.p_holm == pytest.approx(max(2 * low.against.p, high.against.p))
    first, second = listed([told, alike])
    assert first.rows[0][6].startswith("0.500 [") and second.rows[0][6] == "–"
    assert first.about == (
        f"merged: instruct leads in 1 of 1; the merge keeps {first.rows[0][6]} of the lead. "
        "Against the better parent: 1 worse."
    )
    assert "the parents cannot be told apart in any of 1. Against the better parent: 1 better." in second.about
    assert frame([told, alike])["share"].isna().tolist() == [False, True]


def test_of_some_metrics_less_is_better(tmp_path: Path) -> None:
    study = FakeStudy(root=tmp_path)
    made = models(study)
    noise = np.random.default_rng(0).normal(0, 0.01, (3, N))
    for row, (name, level) in zip(noise, (("instruct", 1.0), ("trained", 2.0), ("merged", 1.25))):
        evaluate(study, made[name], items((level + row).tolist(), "bits_per_byte"))
    (told,) = kept(study.cells, study.folders).rows
    assert told.better.stage == "instruct" and told.verdict == "worse"
    assert told.share is not None and told.share[0] == pytest.approx(0.75, abs=0.01)


def test_by_predictions_and_only_where_the_parents_have_the_score(tmp_path: Path) -> None:
    study = FakeStudy(root=tmp_path)
    made = models(study)
    other = study.add(
        "careful", "merge", DONE,
        inputs={"first": made["instruct"], "second": made["trained"], "fisher.first": made["base"], "fisher.second": made["base"]},
    )  # fmt: skip
    for cell in (made["instruct"], made["trained"], other):
        answers = study.add("answers", "generate", DONE, coords={"model": cell.stage}, inputs={"model": cell})
        quality = study.add("quality", "evaluate", DONE, coords={"model": cell.stage}, inputs={"predictions": answers})
        answered = items({"instruct": 70, "trained": 5}.get(cell.stage, 70)) | {"task": ["a"] * 50 + ["b"] * 50}
        study.commit(quality, items=answered)
        assert asked(quality) is cell and asked(answers) is None
    evaluate(study, made["merged"], items(50))
    evaluate(study, made["instruct"], items(50))  # and trained was not asked
    told = kept(study.cells, study.folders).rows
    assert [one.score for one in told] == [f"quality · {task} · correct" for task in ("all", "a", "b")]
    assert [one.against.n for one in told] == [100, 50, 50]
    assert told[0].merged is other and told[0].share is not None and told[0].share[0] == pytest.approx(1)
    assert told[0].verdict == "same scores"
    nothing = kept(study.cells, study.folders, most=0)
    assert (nothing.rows, nothing.left_out) == ([], 1)


def test_other_questions_are_told(tmp_path: Path) -> None:
    study = FakeStudy(root=tmp_path)
    made = models(study)
    for name in ("instruct", "trained", "merged"):
        evaluate(study, made[name], items(50, gold="no" if name == "trained" else "yes"))
    found = kept(study.cells, study.folders)
    assert not found.rows and "these are not the same questions" in found.notes[0]


def test_the_section(tmp_path: Path) -> None:
    study = FakeStudy(root=tmp_path, axes=("model",))
    made = models(study)
    for name, right in (("instruct", 80), ("trained", 20), ("merged", 50)):
        evaluate(study, made[name], items(right))
    page = tmp_path / "page.html"
    write_report(page, name=study.name, text=study.text, **study.arguments())
    text = page.read_text()
    assert '<section id="merges">' in text and "instruct leads in 1 of 1" in text
    for cell in study.cells[:-1]:
        (study.folders[cell.fingerprint] / "items.parquet").unlink(missing_ok=True)
    write_report(page, name=study.name, text=study.text, **study.arguments())
    assert '<section id="merges">' not in page.read_text()
