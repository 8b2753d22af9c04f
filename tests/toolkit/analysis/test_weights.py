"""The weight report in the study's report: read from the cells, by layer, and beside the scores that it should predict."""

from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from scipy import stats

from toolkit.analysis.report import write_report
from toolkit.analysis.weights import by_layer, criterion, listed, measured

from .fake_study import DONE, STEPS, FakeStudy, moved, sizes


def test_cells_that_measured_the_same_are_one(tmp_path: Path) -> None:
    study = FakeStudy(root=tmp_path)
    for steps in (50, 400):
        for scale in (0.5, 1.0):
            study.commit(
                study.add("merged", "merge", DONE, coords={"steps": steps, "scale": scale}), weights=sizes(steps)
            )
    found = measured(study.cells, study.folders)["merged"]
    assert list(found) == ["steps 50", "steps 400"]
    chart = by_layer(found)
    assert chart is not None and chart.scales["linear"].x == tuple(range(12))
    assert [panel.title for panel in chart.panels][2:] == [
        "mean |trained - base| / mean |instruct - base|", "cosine of trained - base and instruct - base"
    ]  # fmt: skip
    assert [point.value for point in chart.panels[2].series[1].points] == [moved(400)] * 12
    first = chart.panels[0].series[0].points  # the file has the last layer first
    assert [round(point.value, 4) for point in first] == [round(0.2 + 0.02 * (12 - at), 4) for at in range(12)]
    headers, rows = listed(found)
    assert headers[:3] == ["models", "layer", "|base|"] and headers[-1] == "cosine"
    assert len(rows) == 2 * 14
    assert rows[0] == ["steps 50", "all", "0.5", "0.1", "0.175", "0.2", "0.35", "1.75", "0.25"]


def test_the_criterion_beside_each_score_and_scale() -> None:
    """A ratio that does not depend on the scale has a correlation for each scale, over budgets."""
    ratio, kept = {50: 1.1, 150: 2.0, 400: 3.5, 800: 3.0}, {0.5: [0.9, 0.5, 0.3, 0.4], 1.0: [0.2, 0.7, 0.6, 0.9]}
    common = {"stderr": None, "n": None, "state": "done", "reason": None, "fingerprint": "0" * 12, "job": "j"}
    rows = [
        {**common, "stage": stage, "steps": steps, "scale": scale, "task": task, "metric": metric, "value": value}
        for scale in kept
        for at, steps in enumerate(ratio)
        for stage, task, metric, value in (
            ("merged", None, "change_over_delta_abs", ratio[steps]), ("kept", "all", "exact_match", kept[scale][at])
        )
    ]  # fmt: skip
    found = {one.score: one.rank for one in criterion(pd.DataFrame(rows))}
    assert set(found) == {"kept · 0.5 · all · exact_match", "kept · 1.0 · all · exact_match"}
    for scale, values in kept.items():
        rank = found[f"kept · {scale} · all · exact_match"]
        assert rank.n == 4
        assert rank.value == pytest.approx(stats.spearmanr(list(ratio.values()), values).statistic)


def test_the_section_is_there_where_something_was_measured(own_study: FakeStudy, tmp_path: Path) -> None:
    def page() -> str:
        arguments = own_study.arguments()
        return write_report(tmp_path / "r.html", name="n", text="", logs={}, **arguments).read_text()

    text = page()
    assert '<section id="weights">' in text and "change / delta" in text and "Does |change| / |delta| rank" in text
    for folder in own_study.folders.values():
        (folder / "weights.parquet").unlink(missing_ok=True)
    assert '<section id="weights">' not in page()


def test_a_report_of_two_models_has_what_there_is(tmp_path: Path) -> None:
    """Without a trained model there is no change: `compare` of base and instruct, or no layer at all."""
    study = FakeStudy(root=tmp_path)
    names = ("part", "name", "elements", "base_abs", "delta_abs", "delta_over_base_abs")
    cell = study.add("merged", "merge", DONE)
    study.commit(cell, weights={name: sizes(STEPS[0])[name] for name in names})
    found = measured(study.cells, study.folders)["merged"]
    chart = by_layer(found)
    assert list(found) == ["merged"] and chart is not None and len(chart.panels) == 1
    assert listed(found)[0] == ["models", "layer", "|base|", "|delta|", "delta / base"]
    table = pq.read_table(study.folders[cell.fingerprint] / "weights.parquet")
    pq.write_table(table.slice(0, 1), study.folders[cell.fingerprint] / "weights.parquet")
    assert by_layer(measured(study.cells, study.folders)["merged"]) is None
