import dataclasses
import math

import pyarrow as pa
import pytest

from toolkit.analysis.axis import compact, scales
from toolkit.analysis.drawing import switch_scale
from toolkit.analysis.figures import Panel, curves, losses
from toolkit.analysis.suspects import checkpoint_axis
from toolkit.analysis.table import measure

from .fake_study import STEPS, FakeStudy, N, skill


def panel(table: pa.Table, title: str) -> Panel:
    return next(p for p in curves(table, "step")[0] if p.title == title)


def test_a_panel_for_each_task_and_metric(table: pa.Table) -> None:
    panels, left_out = curves(table, "step")
    titles = [p.title for p in panels]
    assert titles[:6] == [
        "bios · exact_match", "bios · f1", "bios_qa · acc", "bios_qa · bits_per_byte", "piqa · acc", "piqa · bits_per_byte",
    ]  # fmt: skip
    assert left_out == 0 and curves(table, "step", most=2)[1] == len(panels) - 2


def test_a_line_has_its_values_and_is_broken_where_a_cell_is_missing(table: pa.Table) -> None:
    figure = panel(table, "bios · exact_match").figure
    tuned = next(t for t in figure.data if t.name == "tuned" and t.mode == "lines+markers")
    wanted = [round(skill(s, "tuned") * N) / N for s in STEPS]
    assert list(tuned.y) == [None if s == 300 else v for s, v in zip(STEPS, wanted)]
    assert "[" in tuned.text[1] and "wilson, n = 200" in tuned.text[1] and "model: tuned" in tuned.text[1]
    (strip,) = [t for t in figure.data if t.yaxis == "y2" and t.marker.symbol == "square-open"]
    assert list(strip.meta) == [STEPS.index(300)] and "blocked: UPSTREAM" in strip.text[0]


def test_bands_enclose_their_line(table: pa.Table) -> None:
    figure = panel(table, "bios · exact_match").figure
    band = next(t for t in figure.data if t.fill == "toself" and t.name == "checkpoint")
    line = next(t for t in figure.data if t.name == "checkpoint" and t.mode == "lines+markers")
    assert len(band.y) == 2 * len(STEPS) + 1
    for i, value in enumerate(line.y):
        assert band.y[2 * len(STEPS) - 1 - i] < value < band.y[i]


def test_lines_differ_without_colour(table: pa.Table) -> None:
    lines = [t for t in panel(table, "bios · f1").figure.data if t.mode == "lines+markers"]
    assert len({t.line.dash for t in lines}) == len({t.marker.symbol for t in lines}) == len(lines) == 3
    many = [t for t in panel(table, "bios_qa · acc").figure.data if t.mode == "lines+markers"]
    assert len({(t.line.color, t.line.dash, t.marker.symbol) for t in many}) == len(many) == 6
    assert {t.name for t in many} >= {"tuned · shots 0", "tuned · shots 4"}


def test_the_initialisation_has_a_place_on_a_log_axis() -> None:
    found = scales(STEPS, "step")
    assert list(found) == ["log", "linear", "even"]
    assert found["log"].x[1:] == pytest.approx([math.log10(s) for s in STEPS[1:]])
    assert found["log"].x[0] < found["log"].x[1] and found["log"].labels == ("0", "30", "100", "300", "1k")
    assert found["even"].x == (0, 1, 2, 3, 4) and "0 set apart" in found["log"].title


def test_text_coordinates_have_an_even_axis_only() -> None:
    assert list(scales(["step100", "main"], "step")) == ["even"]
    assert scales(list(range(0, 5000, 10)), "step")["linear"].labels[0] == "0"
    assert len(scales(list(range(0, 5000, 10)), "step")["linear"].ticks) <= 12
    assert [compact(v) for v in (143000, 2.5e9, 0.001, True, "main")] == ["143k", "2.5B", "0.001", "true", "main"]


def test_a_figure_can_be_put_on_another_scale(table: pa.Table) -> None:
    figure = panel(table, "bios · f1").figure
    line = next(t for t in figure.data if t.mode == "lines+markers")
    assert list(switch_scale(figure, "linear").data[figure.data.index(line)].x) == list(STEPS)
    with pytest.raises(ValueError, match="scale 'category' is not one of this figure's: log, linear, even"):
        switch_scale(figure, "category")


def test_seeds_are_averaged_with_a_t_interval(study: FakeStudy) -> None:
    cells = [c for c in study.cells if c.stage == "quality" and c.coords["model"] == "checkpoint"]
    twins = [dataclasses.replace(c, coords={**c.coords, "seed": seed}) for c in cells for seed in (0, 1)]
    table = measure(twins, study.states, study.folders, ["step", "model", "seed"])
    figure = curves(table, "step")[0][0].figure
    (line,) = [t for t in figure.data if t.mode == "lines+markers"]
    assert len(line.y) == len(STEPS) and "t interval, mean of 2 of 2 runs" in line.text[0]


def test_a_cell_without_the_axis_is_a_reference_line(study: FakeStudy, table: pa.Table) -> None:
    figure = panel(table, "pretrained, tuned · loss").figure
    reference = next(t for t in figure.data if t.name == "pretrained")
    assert list(reference.y) == [2.116, 2.116] and list(reference.meta) == [0, len(STEPS) - 1]


def test_loss_curves_end_where_the_run_ended(study: FakeStudy) -> None:
    first, second = losses(study.cells, study.folders)
    assert (first.title, second.title) == ("pretrained · training loss", "tuned · training loss")
    assert len([t for t in second.figure.data]) == 4
    assert first.figure.data[0].x[-1] == pytest.approx(3.0)


def test_labels_cannot_be_markup(study: FakeStudy) -> None:
    cells = [c for c in study.cells if c.stage == "quality"]
    hostile = [dataclasses.replace(c, coords={**c.coords, "model": f"<b>{c.coords['model']}"}) for c in cells]
    figure = curves(measure(hostile, study.states, study.folders, ["step", "model"]), "step")[0][0].figure
    assert {t.name for t in figure.data if t.mode == "lines+markers"} == {
        f"&lt;b>{m}".replace(">", "&gt;") for m in ("checkpoint", "tuned", "merged")
    }


def test_the_checkpoint_axis() -> None:
    assert checkpoint_axis(["model", "tokens"]) == "tokens" and checkpoint_axis(["model"]) is None
