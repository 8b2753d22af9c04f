"""Figures for print: what they draw is read back from matplotlib's own objects."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("matplotlib")

from toolkit.analysis import load_published  # noqa: E402
from toolkit.analysis.charts import bars, curves, heat, scatter, to_json  # noqa: E402
from toolkit.analysis.dynamics import average, gain  # noqa: E402
from toolkit.analysis.plots import WIDTH, draw, save  # noqa: E402
from toolkit.analysis.published import amuro  # noqa: E402
from toolkit.analysis.stats import wilson  # noqa: E402

RELEASED = Path(__file__).parents[4] / "shared" / "amuro"
STEPS = (10, 100, 1000, 10000)


@pytest.fixture
def frame() -> pd.DataFrame:
    rows = [
        {"stage": "s", "tokens": step, "step": step, "train": train, "task": task, "metric": "acc", "n": 200,
         "value": None if (train, step) == ("t", 100) else (20 + 30 * i + 30 * (train == "t")) / 200, "stderr": math.nan}
        for task in ("one", "two") for train in ("base", "t") for i, step in enumerate(STEPS)
    ]  # fmt: skip
    return pd.DataFrame(rows).astype({"value": float})


def test_curves_have_a_panel_a_task_and_a_line_a_model(frame: pd.DataFrame) -> None:
    figure = draw(curves(frame, chance={"one": 0.25}))
    one, two = figure.axes
    assert [ax.get_title() for ax in (one, two)] == ["one · acc", "two · acc"]
    base, tuned, missing = one.lines[:3]
    assert base.get_xdata().tolist() == [1, 2, 3, 4] and base.get_ydata().tolist() == [0.1, 0.25, 0.4, 0.55]
    assert np.isnan(tuned.get_ydata()[1])
    assert {line.get_linestyle() for line in (base, tuned)} == {"-", "--"} and base.get_marker() != tuned.get_marker()
    assert (missing.get_marker(), missing.get_xdata().tolist()) == ("x", [2])
    band = one.collections[0].get_paths()[0].vertices
    low, high = wilson(0.1, 200)
    assert {float(low), float(high)} <= {y for x, y in band.tolist() if x == 1}
    assert one.lines[-1].get_ydata() == [0.25, 0.25] and len(two.lines) == len(one.lines) - 1
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["base", "t", "chance"]


def test_the_axis_can_be_the_categorical_one(frame: pd.DataFrame) -> None:
    even = draw(curves(frame, over="step"), "even").axes[-1]
    assert even.lines[0].get_xdata().tolist() == [0, 1, 2, 3] and even.get_xlabel() == "step, evenly spaced"
    assert [label.get_text() for label in even.get_xticklabels()] == ["10", "100", "1k", "10k"]
    with pytest.raises(
        ValueError, match="scale 'cubic' is not one that these coordinates of 'tokens' allow: log, linear, even"
    ):
        draw(curves(frame), "cubic")


def test_seeds_are_drawn_as_their_mean_and_other_repeats_are_refused(frame: pd.DataFrame) -> None:
    two = pd.concat([frame.assign(seed=0), frame.assign(seed=1, value=frame["value"] + 0.02)])
    assert draw(curves(two)).axes[0].lines[0].get_ydata()[0] == pytest.approx(0.11)
    with pytest.raises(ValueError, match="several rows at tokens 10: they differ in shots"):
        curves(pd.concat([frame.assign(shots=0), frame.assign(shots=4)]))
    with pytest.raises(ValueError, match="unknown column 'trian'; did you mean 'train'"):
        curves(frame, lines=["trian"])


def test_bars_heat_and_scatter_show_the_numbers(frame: pd.DataFrame) -> None:
    gains = gain(frame)
    means = average(gains, [("t", "one"), ("t", "two")])
    (ax,) = draw(bars(means, "step")).axes
    heights = [bar.get_height() for bar in ax.patches]
    assert heights[0] == pytest.approx(0.15) and math.isnan(heights[1])
    many = pd.DataFrame([{"x": i, "g": g, "mean": 0.1, "low": 0.0, "high": 0.2} for i in range(20) for g in "abcdefgh"])
    assert draw(bars(many, "x", "g")).get_size_inches()[0] == pytest.approx(3 * WIDTH)  # a page has no more
    (ax,) = draw(heat(gains, value="gain")).axes
    assert [t.get_text() for t in ax.texts][:4] == ["0.15", "0.15", "not run", "not run"]
    (ax,) = draw(scatter(gains, "base", "value")).axes
    assert ax.get_title().startswith("rho 1.00 [") and ax.get_title().endswith("n = 6")
    with pytest.raises(ValueError, match="they differ in train"):
        heat(frame)


@pytest.mark.parametrize("suffix", [".pdf", ".png", ".svg"])
def test_equal_figures_give_equal_bytes(frame: pd.DataFrame, tmp_path: Path, suffix: str) -> None:
    first, second = (save(draw(curves(frame)), tmp_path / f"{name}{suffix}").read_bytes() for name in "ab")
    assert first == second and len(first) > 3000
    with pytest.raises(ValueError, match="must end in .pdf, .png, .svg"):
        save(draw(curves(frame)), tmp_path / "a.jpg")


@pytest.mark.skipif(not RELEASED.is_dir(), reason="the released tables are not here")
def test_every_figure_of_the_paper_comes_from_its_rows(tmp_path: Path) -> None:
    made = {name: make() for name, make in amuro.figures(load_published("amuro", RELEASED)).items()}
    assert set(made) == set(amuro.ABOUT) and len(made) == 18
    assert made["cross-task-change"].measure == "mean relative change" and "FT - BASE" in made["gain-of-groups"].measure
    found = {name: draw(chart, "even" if chart.kind == "lines" else None) for name, chart in made.items()}
    for name, figure in found.items():
        assert save(figure, tmp_path / f"{name}.pdf").stat().st_size > 5000
    table6 = amuro.table6(load_published("amuro", RELEASED))
    heights = [bar.get_height() for bar in found["gain-of-groups"].axes[0].patches]
    assert heights == pytest.approx([*table6["learned_in_finetune"], *table6["learned_in_pretrain"]])
    paws = next(ax for ax in found["cross-task"].axes if ax.get_title() == "paws → mnli_matched")
    assert next(line for line in paws.lines if line.get_marker() == "x").get_xdata().tolist() == [2, 6]  # not run
    missing = [p.said for p in made["cross-task"].panels[3].series[1].points if p.state]
    assert missing == [("no value", f"tokens {step * 2048 * 2048}", "fine-tuned") for step in (342000, 738000)]


def as_own(paper: pd.DataFrame) -> pd.DataFrame:
    """Released rows as `amuro-sft.yaml` and `amuro-it.yaml` would leave them: the label of a union, no `train` before
    tuning, the last step called main, likelihoods at no shots, and more metrics and shots than the paper has."""
    rows = paper[paper["repeat"].isna() & ((paper["harness"] == "amuro") | ~paper["task"].isin(["qqp", "rte"]))]
    untuned = rows["train"] == "base"
    official = rows["harness"] == "olmo-eval"
    own = rows.assign(
        job="evaluate",
        stage="scores",
        model=rows["train"].where(~untuned, "base").where(untuned, "tuned"),
        train=rows["train"].where(~untuned),
        step=rows["step"].astype(str).replace(str(amuro.MAIN), "main"),
        task=rows["task"].mask(~official & (rows["task"] == "sciq"), "sciq_questions"),
        format=rows["format"].where(~official),
    ).drop(columns=["harness", "tokens", "epochs", "lr", "repeat"])
    more = own[official].assign(shots=4, value=0.0)
    return pd.concat([own, more, own.assign(metric="bits_per_byte", value=9.0)])


@pytest.mark.skipif(not RELEASED.is_dir(), reason="the released tables are not here")
def test_ones_own_rows_stand_beside_the_papers() -> None:
    paper = load_published("amuro", RELEASED)
    own = as_own(paper)
    assert amuro.table6(own).equals(amuro.table6(paper))
    styled = own["format"].isin(amuro.FORMATS)
    named = own.assign(task=own["task"].mask(styled, own["task"] + "_" + own["format"].astype(str)), format=None)
    told = [rows[["task", "format", "value"]].fillna(0).to_numpy().tolist() for rows in map(amuro.beside, (own, named))]
    assert told[0] == told[1] and styled.sum() > 100  # a format may stand in the name of a task
    with pytest.raises(ValueError, match="step 'early' of this study is no number"):
        amuro.beside(own.assign(step="early"))
    alone = {name: make() for name, make in amuro.figures(own).items()}
    both = {name: make() for name, make in amuro.figures(pd.concat([paper, own])).items()}
    for name, chart in alone.items():
        told = {
            (panel.title.replace(" · own", ""), series.name.replace(" · own", "")): [p.value for p in series.points]
            for panel in both[name].panels
            for series in panel.series
            if "paper" not in series.name
        }
        assert sum(len(panel.series) for panel in both[name].panels) > sum(
            len(panel.series) for panel in chart.panels
        ) or (
            chart.kind == "heat" and len(both[name].panels[0].series[0].points) > len(chart.panels[0].series[0].points)
        ), name
        for panel in chart.panels if chart.kind == "lines" else ():
            for series in panel.series:
                assert told[panel.title, series.name] == pytest.approx(
                    [p.value for p in series.points], nan_ok=True
                ), name


@pytest.mark.skipif(not RELEASED.is_dir(), reason="the released tables are not here")
def test_a_figure_that_cannot_be_drawn_is_refused_by_itself() -> None:
    frame = load_published("amuro", RELEASED)
    few = amuro.figures(frame[frame["task"] != "rte"])
    with pytest.raises(ValueError, match="no row of a model with train 'mnli' on task 'rte'"):
        few["out-of-domain-change"]()
    assert few["tuned-in-domain"]().panels and amuro.figures(frame[frame["train"] != "base"])


def test_labels_of_hostile_names_are_no_markup_in_print(frame: pd.DataFrame, tmp_path: Path) -> None:
    """`$` would begin mathematics, and a figure that cannot be set ends the command."""
    evil = "$x_{ \\frac <b>\u202e"
    hostile = frame.replace({"task": {"one": evil}})
    figure = draw(curves(hostile, lines=["train"]))
    assert figure.axes[0].get_title() == f"{evil} · acc"
    assert save(figure, tmp_path / "evil.pdf").stat().st_size > 3000


def test_a_chart_for_the_page_has_the_numbers_of_the_one_for_print(frame: pd.DataFrame) -> None:
    chart = to_json(curves(frame, chance={"one": 0.25}))
    (base, tuned), chance = chart["panels"][0]["series"], chart["panels"][0]["chance"]
    assert [p["value"] for p in tuned["points"]] == [0.25, None, 0.55, 0.7] and chance == 0.25
    low, high = wilson(0.1, 200)
    assert (base["points"][0]["low"], base["points"][0]["high"]) == (pytest.approx(low), pytest.approx(high))
    assert chart["scales"]["log"]["labels"] == ["10", "100", "1k", "10k"]
