"""Cheap signals beside scores: joined by their coordinates, and ranked as scipy does."""

import pandas as pd
import pytest
from scipy import stats

from toolkit.analysis.charts import scatter
from toolkit.analysis.signals import beside, names, signals

CHANGE = (3.1, 2.0, 2.4, 0.7, 0.2)
SCORES = {"checkpoint": (0.1, 0.12, 0.11, 0.3, 0.2), "tuned": (0.2, 0.5, 0.4, 0.6, 0.9)}


def line(stage: str, step: int, metric: str, value: float, **more: object) -> dict[str, object]:
    row = {"stage": stage, "job": "j", "step": step, "model": None, "task": None, "metric": metric, "value": value}
    return {**row, "stderr": None, "n": None, "state": "done", "reason": None, "fingerprint": "0" * 12, **more}


@pytest.fixture
def frame() -> pd.DataFrame:
    rows = [line("merged", step, "change_over_delta_abs", value) for step, value in enumerate(CHANGE)]
    rows += [line("merged", step, "parameters", 12240) for step in range(5)]
    for model, values in SCORES.items():
        rows += [line("scores", s, "acc", v, model=model, task="piqa") for s, v in enumerate(values)]
    return pd.DataFrame(rows)


def test_a_signal_belongs_to_the_scores_at_its_coordinates(frame: pd.DataFrame) -> None:
    assert names(frame) == ["merged.change_over_delta_abs", "scores.acc@piqa"]  # what does not vary says nothing
    found = beside(frame, "merged.change_over_delta_abs", frame[frame["task"] == "piqa"])
    tuned = found[found["model"] == "tuned"].sort_values("step")
    assert tuned["merged.change_over_delta_abs"].tolist() == list(CHANGE) and len(found) == 10
    with pytest.raises(ValueError, match="unknown signal 'merged.change'; did you mean"):
        beside(frame, "merged.change", frame)
    with pytest.raises(ValueError, match="signal 'base.loss' does not vary over an axis"):
        beside(pd.concat([frame, pd.DataFrame([line("base", 0, "loss", 2.0)])]), "base.loss", frame)
    with pytest.raises(ValueError, match="several numbers at"):
        beside(pd.concat([frame, frame]), "merged.change_over_delta_abs", frame)


def test_each_signal_is_ranked_against_each_score_of_other_stages(frame: pd.DataFrame) -> None:
    found = {one.score: one for one in signals(frame, "step")}
    assert set(found) == {"scores · tuned · piqa · acc", "scores · checkpoint · piqa · acc"}
    tuned = found["scores · tuned · piqa · acc"]
    assert tuned.rank.value == pytest.approx(stats.spearmanr(CHANGE, SCORES["tuned"]).statistic) == -1
    assert tuned.rank.p == pytest.approx(2 / 120) and tuned.p_holm == pytest.approx(4 / 120)  # of 5! orders


def test_without_checkpoints_every_point_of_the_signal_counts(frame: pd.DataFrame) -> None:
    grid = frame.rename(columns={"step": "lr"}).assign(scale=1.0)
    half = grid.assign(scale=0.5, value=grid["value"] * (1 + grid["lr"]))
    found = {one.score: one for one in signals(pd.concat([grid, half]), None)}
    tuned = found["scores · tuned · piqa · acc"]
    change = [*CHANGE, *(v * (1 + i) for i, v in enumerate(CHANGE))]
    reached = [*SCORES["tuned"], *(v * (1 + i) for i, v in enumerate(SCORES["tuned"]))]
    assert tuned.rank.n == 10 and tuned.rank.value == pytest.approx(stats.spearmanr(change, reached).statistic)


def test_a_scatter_names_the_correlation_of_each_line(frame: pd.DataFrame) -> None:
    pairs = beside(frame, "merged.change_over_delta_abs", frame[frame["task"] == "piqa"])
    chart = scatter(pairs, "merged.change_over_delta_abs", "value", ["model"])
    (panel,) = chart.panels
    assert panel.title.endswith("n = 10") and [s.name.split(":")[0] for s in panel.series] == ["checkpoint", "tuned"]
    assert panel.series[1].name.startswith("tuned: rho -1.00") and panel.series[1].points[0].at == CHANGE[0]
    assert "step 0" in panel.series[1].points[0].said
