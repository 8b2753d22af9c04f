"""The axis of checkpoints, and curves of training losses."""

import math

import pytest

from toolkit.analysis.axis import compact, compact_all, scales
from toolkit.analysis.losses import losses
from toolkit.analysis.suspects import checkpoint_axis

from .fake_study import STEPS, FakeStudy


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
    assert compact_all([4194304000, 738000, 738020]) == ["4.19B", "738k", "738.02k"]


def test_loss_curves_end_where_the_run_ended(study: FakeStudy) -> None:
    (first, one), (second, two) = losses(study.cells, study.folders)
    assert (first, second) == ("pretrained", "tuned") and one.panels[0].title == "pretrained · training loss"
    (line,) = one.panels[0].series
    assert one.scales["linear"].x[int(line.points[-1].at)] == 1000 and line.points[-1].value == pytest.approx(
        2.1162, abs=1e-3
    )
    assert [series.name for series in two.panels[0].series] == ["step 0", "step 30", "step 100", "step 1000"]


def test_the_checkpoint_axis() -> None:
    assert checkpoint_axis(["model", "tokens"]) == "tokens" and checkpoint_axis(["model"]) is None
