"""Figures for print: what they draw is read back from matplotlib's own objects."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("matplotlib")

from toolkit.analysis import load_published  # noqa: E402
from toolkit.analysis.dynamics import average, gain  # noqa: E402
from toolkit.analysis.plots import bars, curves, heat, save, scatter  # noqa: E402
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
    figure = curves(frame, chance={"one": 0.25})
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
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["base", "t"]


def test_the_axis_can_be_the_categorical_one(frame: pd.DataFrame) -> None:
    even = curves(frame, over="step", scale="even").axes[-1]
    assert even.lines[0].get_xdata().tolist() == [0, 1, 2, 3] and even.get_xlabel() == "step, evenly spaced"
    assert [label.get_text() for label in even.get_xticklabels()] == ["10", "100", "1k", "10k"]
    with pytest.raises(
        ValueError, match="scale 'cubic' is not one that these coordinates of 'tokens' allow: log, linear, even"
    ):
        curves(frame, scale="cubic")  # type: ignore[arg-type]


def test_seeds_are_drawn_as_their_mean_and_other_repeats_are_refused(frame: pd.DataFrame) -> None:
    two = pd.concat([frame.assign(seed=0), frame.assign(seed=1, value=frame["value"] + 0.02)])
    assert curves(two).axes[0].lines[0].get_ydata()[0] == pytest.approx(0.11)
    with pytest.raises(ValueError, match="several rows at tokens 10: they differ in shots"):
        curves(pd.concat([frame.assign(shots=0), frame.assign(shots=4)]))
    with pytest.raises(ValueError, match="unknown column 'trian'; did you mean 'train'"):
        curves(frame, lines=["trian"])


def test_bars_heat_and_scatter_show_the_numbers(frame: pd.DataFrame) -> None:
    gains = gain(frame)
    means = average(gains, [("t", "one"), ("t", "two")])
    (ax,) = bars(means, "step").axes
    heights = [bar.get_height() for bar in ax.patches]
    assert heights[0] == pytest.approx(0.15) and math.isnan(heights[1])
    (ax,) = heat(gains, value="gain").axes
    assert [t.get_text() for t in ax.texts][:4] == ["0.15", "0.15", "not run", "not run"]
    (ax,) = scatter(gains, "base", "value").axes
    assert ax.get_title().startswith("rho 1.00 [") and ax.get_title().endswith("n = 6")
    with pytest.raises(ValueError, match="they differ in train"):
        heat(frame)


@pytest.mark.parametrize("suffix", [".pdf", ".png", ".svg"])
def test_equal_figures_give_equal_bytes(frame: pd.DataFrame, tmp_path: Path, suffix: str) -> None:
    first, second = (save(curves(frame), tmp_path / f"{name}{suffix}").read_bytes() for name in "ab")
    assert first == second and len(first) > 3000
    with pytest.raises(ValueError, match="must end in .pdf, .png, .svg"):
        save(curves(frame), tmp_path / "a.jpg")


@pytest.mark.skipif(not RELEASED.is_dir(), reason="the released tables are not here")
def test_every_figure_of_the_paper_comes_from_its_rows(tmp_path: Path) -> None:
    found = amuro.figures(load_published("amuro", RELEASED), "even")
    assert len(found) == 12
    for name, figure in found.items():
        assert save(figure, tmp_path / f"{name}.pdf").stat().st_size > 5000
    table6 = amuro.table6(load_published("amuro", RELEASED))
    heights = [bar.get_height() for bar in found["gain-of-groups"].axes[0].patches]
    assert heights == pytest.approx([*table6["learned_in_finetune"], *table6["learned_in_pretrain"]])
    paws = next(ax for ax in found["cross-task"].axes if ax.get_title() == "paws → mnli_matched")
    assert next(line for line in paws.lines if line.get_marker() == "x").get_xdata().tolist() == [2, 6]  # not run
