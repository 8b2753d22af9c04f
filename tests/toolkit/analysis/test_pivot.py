import dataclasses
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest

from toolkit.analysis.formats import full, grid, latex, number, to_csv, to_latex, to_markdown, with_error
from toolkit.analysis.pivot import choose, parse_where, pivot
from toolkit.analysis.table import measure

from .fake_study import NEVER, FakeStudy, N, skill

ACC: dict[str, Any] = {"rows": ["step"], "cols": ["model"], "values": "acc"}


def seeds(values: list[float | None], states: list[str] | None = None) -> pa.Table:
    """A small long table: two tasks of one model, seeds 0.., values given."""
    size = len(values)
    return pa.table(
        {
            "stage": ["scores"] * size, "job": ["evaluate"] * size, "seed": list(range(size)), "task": ["t"] * size,
            "metric": pa.array([None if v is None else "acc" for v in values], pa.string()), "value": pa.array(values, pa.float64()),
            "stderr": pa.array([None if v is None else 0.01 for v in values], pa.float64()),
            "n": pa.array([None if v is None else 100 for v in values], pa.int64()), "state": states or ["done"] * size,
            "reason": pa.nulls(size, pa.string()), "fingerprint": [f"{i:012x}" for i in range(size)],
        }
    )  # fmt: skip


def test_a_rectangle_with_missing_cells_in_their_places(table: pa.Table) -> None:
    found = pivot(table, **ACC, where={"task": ["bios_qa"], "shots": ["0"]})
    headers, rows = grid(found)
    assert headers == ["step", "checkpoint", "tuned", "merged"]
    places = {row[0]: row[1:] for row in rows}
    assert list(places) == ["0", "30", "100", "300", "1000"]
    assert (
        places["300"][1] == "blocked: UPSTREAM" and places["1000"][2] == "never-run" and places["100"][2] == "running"
    )
    value = round(skill(1000, "tuned") * N) / N
    assert places["1000"][1] == f"{value:.3f} ± {math.sqrt(value * (1 - value) / N):.3f}"


def test_leftover_axes_are_named_with_the_remedy(table: pa.Table) -> None:
    with pytest.raises(ValueError) as error:
        pivot(table, **ACC, where={"task": ["bios_qa"]})
    assert "differ in shots (0, 4)" in str(error.value)
    assert "--where shots=0" in str(error.value) and "--rows step,shots" in str(error.value)
    assert "--mean-over shots" in str(error.value)
    with pytest.raises(ValueError, match=r"shots \(0, 4\); task \(bios_qa, piqa\)"):
        pivot(table, **ACC)


def test_a_mean_says_how_many_and_keeps_the_spread(table: pa.Table) -> None:
    values = [0.5, 0.6, 0.4]
    found = pivot(seeds(values), rows=[], cols=["task"], values="acc", mean_over=["seed"])
    assert found.value[0, 0] == pytest.approx(0.5) and found.count[0, 0] == 3
    assert found.stderr[0, 0] == pytest.approx(np.std(values, ddof=1) / math.sqrt(3))
    assert grid(found)[1] == [["0.500 ± 0.058 (n=3)"]]
    part = pivot(
        seeds([0.5, None, 0.4], ["done", "never-run", "done"]), rows=[], cols=["task"], values="acc", mean_over=["seed"]
    )
    assert grid(part)[1] == [["0.450 ± 0.050 (n=2 of 3)"]]
    none = pivot(seeds([None, None], ["failed", "never-run"]), rows=[], cols=["task"], values="acc", mean_over=["seed"])
    assert grid(none)[1] == [["failed, never-run"]]


def test_not_a_number_is_shown_as_such(table: pa.Table) -> None:
    found = pivot(seeds([math.nan, 0.5]), rows=["seed"], cols=["task"], values="acc")
    assert grid(found)[1] == [["0", "nan ± 0.010"], ["1", "0.500 ± 0.010"]]
    assert "nan" in to_csv(found) and full(found)["t state"].to_pylist() == ["done", "done"]


def test_a_measurement_that_stands_twice_is_an_error() -> None:
    twice = pa.concat_tables([seeds([0.5]), seeds([0.6])])
    with pytest.raises(ValueError, match="artifact 000000000000 of stage 'scores' holds 'acc' of one task twice"):
        pivot(twice, rows=["seed"], cols=["task"], values="acc")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"rows": ["stpe"]}, "unknown column 'stpe'; did you mean 'step'"),
        ({"values": "accc"}, r"unknown metric 'accc'; did you mean 'acc'.*state.*--values"),
        ({"where": {"step": ["31"]}}, "unknown value of 'step' '31'; .*30"),
        ({"where": {"modle": ["tuned"]}}, "unknown column 'modle'; did you mean 'model'"),
        ({"mean_over": ["seed"]}, "unknown column 'seed'"),
    ],
)
def test_wrong_words_are_named(table: pa.Table, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pivot(table, **{**ACC, **change})


def test_where_compares_numbers_as_numbers() -> None:
    table = seeds([0.1, 0.2]).set_column(2, "lr", pa.array([1e-5, 1e-4]))
    found = pivot(table, rows=["lr"], cols=["task"], values="acc", where=dict(parse_where(["lr=0.00001"])))
    assert found.row_labels == ((1e-05,),)
    assert parse_where(["a=1", "a=2", "b=x=y"]) == {"a": ["1", "2"], "b": ["x=y"]}
    with pytest.raises(ValueError, match="--where 'seed' must be COLUMN=VALUE"):
        parse_where(["seed"])


def test_states_are_counted(table: pa.Table) -> None:
    headers, rows = grid(pivot(table, rows=["stage"], cols=[], values="state"))
    counts = dict(rows)
    assert counts["tuned"] == "done 4, failed 1" and counts["people"] == "done"
    assert counts["scores"] == "blocked 2, done 21, never-run 5, running 2" and headers == ["stage", "state"]


def test_a_study_in_which_nothing_ran_shows_that(study: FakeStudy) -> None:
    table = seeds([None, None], ["never-run", "never-run"])
    assert grid(pivot(table, rows=["seed"], cols=["task"], values="acc"))[1] == [["0", "never-run"], ["1", "never-run"]]


def test_a_stage_in_which_nothing_is_done_stands_beside_its_like(study: FakeStudy) -> None:
    """`more` takes the same inputs as `quality`, so its cells, none of which ran, belong to the same metrics; `scores`, of
    the same job, takes others."""
    step_0 = [c for c in study.cells if c.stage in ("quality", "scores") and c.coords["step"] == 0]
    more = [
        dataclasses.replace(c, stage="more", fingerprint=c.fingerprint[::-1]) for c in step_0 if c.stage == "quality"
    ]
    states = {**study.states, **{c.fingerprint: NEVER for c in more}}
    table = measure([*step_0, *more], states, study.folders, study.axes)
    headers, rows = grid(pivot(table, ["stage"], ["model"], "f1", where={"task": ["bios"]}))
    assert rows[1] == ["more", "never-run", "never-run", "never-run"] and len(rows) == 2
    assert len(grid(pivot(table, ["stage"], ["model", "shots"], "acc", where={"task": ["piqa"]}))[1]) == 1


def test_choosing_a_task_keeps_the_cells_that_miss_it(study: FakeStudy, table: pa.Table) -> None:
    chosen = choose(table, {"task": ["bios"]})
    assert set(chosen["stage"].to_pylist()) == {"quality"}
    cells = {c.fingerprint[:12] for c in study.cells if c.stage == "quality"}
    assert set(chosen["fingerprint"].to_pylist()) == cells
    assert {"never-run", "blocked"} <= set(chosen["state"].to_pylist())
    with pytest.raises(ValueError, match="no row of the table has all of --where task=bios --where shots=4"):
        choose(table, {"task": ["bios"], "shots": ["4"]})


def test_missing_cells_stay_where_all_that_is_chosen_is_missing(table: pa.Table) -> None:
    found = pivot(table, ["model"], ["task"], "acc", where={"step": ["30"], "shots": ["4"]})
    assert grid(found)[1] == [[model, "never-run", "never-run"] for model in ("checkpoint", "tuned", "merged")]


def test_a_metric_that_may_still_come_is_hinted_at(study: FakeStudy) -> None:
    states = {**study.states, **{c.fingerprint: NEVER for c in study.cells if c.stage == "quality"}}
    table = measure(study.cells, states, study.folders, study.axes)
    with pytest.raises(ValueError, match="unknown metric 'exact_match'.*what these stages measure: .*quality"):
        pivot(table, ["step"], ["model"], "exact_match")


GOLDEN_MARKDOWN = """\
| step | checkpoint    | tuned             | merged        |
| ---- | ------------- | ----------------- | ------------- |
| 0    | 0.110 ± 0.020 | 0.110 ± 0.020     | 0.110 ± 0.020 |
| 300  | 0.260 ± 0.020 | blocked: UPSTREAM | 0.605 ± 0.020 |
| 1000 | 0.290 ± 0.020 | 0.830 ± 0.020     | never-run     |
"""
GOLDEN_LATEX = r"""\begin{tabular}{lrrr}
\toprule
step & checkpoint & tuned & merged \\
\midrule
0 & 0.110 [0.071, 0.149] & 0.110 [0.071, 0.149] & 0.110 [0.071, 0.149] \\
300 & 0.260 [0.221, 0.299] & blocked: UPSTREAM & 0.605 [0.566, 0.644] \\
1000 & 0.290 [0.251, 0.329] & 0.830 [0.791, 0.869] & never-run \\
\bottomrule
\end{tabular}
"""
GOLDEN_CSV = """\
"step","checkpoint","checkpoint stderr","checkpoint state","tuned","tuned stderr","tuned state","merged","merged stderr","merged state"
0,0.11,0.02,"done",0.11,0.02,"done",0.11,0.02,"done"
300,0.26,0.02,"done",,,"blocked: UPSTREAM",0.605,0.02,"done"
1000,0.29000000000000004,0.02,"done",0.8300000000000001,0.02,"done",,,"never-run"
"""


def test_golden_formats(table: pa.Table) -> None:
    found = pivot(table, ["step"], ["model"], "f1", where={"step": ["0", "300", "1000"]})
    assert to_markdown(found) == GOLDEN_MARKDOWN
    assert to_latex(found) == GOLDEN_LATEX
    assert to_csv(found) == GOLDEN_CSV


def test_csv_reads_back_the_same(table: pa.Table) -> None:
    back = pyarrow.csv.read_csv(pa.BufferReader(to_csv(table).encode()))
    assert back["value"].to_pylist() == table["value"].to_pylist()
    assert back["stderr"].to_pylist() == table["stderr"].to_pylist()


def test_hostile_labels_stay_text() -> None:
    label = "a|b & 50% of $x_{1}^2$ #1 ~\\ <b>\nend"
    table = seeds([0.5]).set_column(3, "task", pa.array([label]))
    assert to_markdown(table).splitlines()[2].count(" | ") == len(table.column_names) - 3
    assert r"a\|b & 50% of $x_{1}^2$ #1 ~\\ &lt;b> end" in to_markdown(table)
    wanted = r"a\textbar{}b \& 50\% of \$x\_\{1\}\textasciicircum{}2\$ \#1 \textasciitilde{}\textbackslash{} \textless{}b\textgreater{} end"
    assert latex(label) == wanted and wanted in to_latex(table)


@pytest.mark.parametrize(
    "value, stderr, text",
    [
        (0.51249, 0.0312, "0.512 ± 0.031"), (0.5, None, "0.500"), (0.5, math.nan, "0.500"), (0.0, 0.0, "0.000 ± 0.000"),
        (1.0, None, "1.000"), (51234.0, None, "51234"), (0.0001234, None, "0.000123"), (1.5e7 + 0.5, None, "1.5e+07"),
        (math.inf, None, "inf"), (0.5, 0.0001, "0.500 ± 0.0001"), (-2.5, 0.25, "-2.500 ± 0.250"),
    ],
)  # fmt: skip
def test_numbers_for_people(value: float, stderr: float | None, text: str) -> None:
    assert with_error(value, stderr) == text
    assert number(value) == text.split(" ± ")[0]
