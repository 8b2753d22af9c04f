"""Checkpoints that stand out of their curve, or repeat another's value, are named; honest curves are left alone."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.analysis.report import write_report
from toolkit.analysis.suspects import breaks, repeats, suspects, suspects_of
from toolkit.analysis.table import measure
from toolkit.manifest import index

from .fake_study import DONE, STEPS, FakeStudy

STEEP = [10.2, 6.1, 3.0, 1.4, 1.1, 1.02, 1.01, 1.005]


@pytest.mark.parametrize("at", range(1, len(STEEP)))
@pytest.mark.parametrize("factor", [1.05, 2.0, 10.0])
def test_a_value_above_its_neighbours(at: int, factor: float) -> None:
    spoilt = [*STEEP]
    spoilt[at] = max(STEEP[at - 1], STEEP[at]) * factor
    alone = at == 1 or spoilt[at] > STEEP[at - 2]  # or else the one before it may as well be too low
    assert breaks(spoilt) == ([at] if alone else [at - 1, at])


def test_a_value_below_its_neighbours() -> None:
    assert breaks([3.0, 2.5, 1.2, 2.0, 1.9]) == [2]


def test_curves_that_fall_steeply_or_wobble() -> None:
    assert breaks(STEEP) == breaks([2.0, 3.0]) == breaks([]) == []
    rng = random.Random(0)
    for _ in range(200):
        curve = [1 + 3 / (1 + n) + rng.gauss(0, 0.004) for n in range(40)]
        assert breaks(curve) == []


def test_a_curve_that_goes_on_rising_is_a_curve() -> None:
    """A small model that forgets the fixed text's language: every value is above the one before, none stands out."""
    assert breaks([7.99, 7.13, 8.29, 9.60, 10.74, 11.69]) == []
    assert breaks([7.99, 7.13, 8.29, 9.60, 10.74, 19.0]) == [5], "but not faster than it did"


def test_values_that_repeat() -> None:
    assert repeats([1.234561, 2.0, 1.234559, 1.23457]) == [(0, 2)]


def study_of(values: list[float], root: Path) -> FakeStudy:
    study = FakeStudy(root=root, axes=("step",))
    for step, value in zip(STEPS, values, strict=True):
        study.commit(
            study.add("checkpoint", "convert", DONE, coords={"step": step}), {"bits_per_byte": value, "tensors": 47}
        )
    return study


def test_of_a_study(tmp_path: Path) -> None:
    good, bad = study_of([9.0, 4.0, 2.0, 1.5, 1.2], tmp_path / "a"), study_of(
        [9.0, 4.0, 12.0, 1.2, 1.2], tmp_path / "b"
    )
    assert suspects(measure(**good.arguments())) == []
    assert suspects(measure(**bad.arguments())) == [
        "stage=checkpoint, metric=bits_per_byte: step 100 has 12.00000, its neighbours 4.00000 and 1.20000",
        "stage=checkpoint, metric=bits_per_byte: step 300 and 1000 both have 1.20000",
    ]
    assert suspects_of(good.cells, index.records(good.root)[0]) == {}
    told = suspects_of(bad.cells, index.records(bad.root)[0])
    assert told == {"checkpoint": suspects(measure(**bad.arguments()))}, "plan says what table and report say"


def test_planning_finds_them_without_heavy_libraries() -> None:
    code = "import sys, slurm.commands, toolkit.analysis.suspects as s\nassert s.suspects_of([], {}) == {}\n"
    code += "assert not {'pyarrow', 'pandas', 'numpy', 'torch', 'plotly'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_report_names_them(tmp_path: Path) -> None:
    for name, values, shown in (("a", [9.0, 4.0, 2.0, 1.5, 1.2], False), ("b", [9.0, 4.0, 12.0, 1.3, 1.2], True)):
        study = study_of(values, tmp_path / name)
        page = write_report(tmp_path / f"{name}.html", name=name, text="", **study.arguments()).read_text()
        assert ("Suspect checkpoints" in page) == ("step 100 has 12.00000" in page) == shown
