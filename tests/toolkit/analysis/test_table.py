import dataclasses
import json
import math
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from toolkit.analysis.formats import to_csv, to_markdown, to_parquet
from toolkit.analysis.table import measure

from .fake_study import DONE, NEVER, FakeStudy, N, skill

COLUMNS = [
    "stage",
    "job",
    "step",
    "model",
    "shots",
    "task",
    "metric",
    "value",
    "stderr",
    "n",
    "state",
    "reason",
    "fingerprint",
]


def rows_of(table: pa.Table, **where: object) -> list[dict[str, object]]:
    return [row for row in table.to_pylist() if all(row[k] == v for k, v in where.items())]


def test_one_row_a_measurement_with_every_axis(study: FakeStudy, table: pa.Table) -> None:
    assert table.column_names == COLUMNS
    (row,) = rows_of(table, stage="scores", step=1000, model="tuned", shots=0, task="bios_qa", metric="acc")
    assert row["value"] == round(skill(1000, "tuned") * N) / N and row["n"] == N and row["state"] == "done"
    assert len(str(row["fingerprint"])) == 12 and row["reason"] is None
    (loss,) = rows_of(table, stage="pretrained", metric="loss")
    assert (loss["value"], loss["task"], loss["step"], loss["model"], loss["n"]) == (2.116, None, None, None, None)


def test_every_cell_has_a_row_and_missing_ones_have_no_number(study: FakeStudy, table: pa.Table) -> None:
    assert set(table["fingerprint"].to_pylist()) == {c.fingerprint[:12] for c in study.cells}
    missing = table.filter(pc.not_equal(table["state"], "done"))
    assert missing.num_rows > 10
    for name in ("metric", "value", "stderr", "n"):
        assert missing[name].null_count == missing.num_rows
    assert rows_of(table, stage="tuned", step=300) == [
        {**dict.fromkeys(COLUMNS), "stage": "tuned", "job": "train", "step": 300, "state": "failed", "reason": "DISK_FULL",
         "fingerprint": next(c.fingerprint[:12] for c in study.cells if c.name == "tuned[step=300]")}
    ]  # fmt: skip
    never = rows_of(table, stage="scores", step=30, model="tuned", shots=4)
    assert [(r["task"], r["state"]) for r in never] == [("bios_qa", "never-run"), ("piqa", "never-run")]


def test_order_is_that_of_the_study_then_task_and_metric(study: FakeStudy, table: pa.Table) -> None:
    position = {c.fingerprint[:12]: i for i, c in enumerate(study.cells)}
    keys = [(position[r["fingerprint"]], r["task"] or "", r["metric"] or "") for r in table.to_pylist()]
    assert keys == sorted(keys)


def test_equal_inputs_give_equal_bytes_with_cold_warm_and_no_index(study: FakeStudy, tmp_path: Path) -> None:
    index = tmp_path / "index" / "rows.parquet"
    found = []
    for use in (None, index, index):
        table = measure(**study.arguments(), index=use)
        path = to_parquet(table, tmp_path / "table.parquet")
        found.append((to_csv(table), to_markdown(table), path.read_bytes()))
    assert index.exists() and found[0] == found[1] == found[2]


def test_the_index_sees_an_artifact_that_was_made_anew(own_study: FakeStudy, tmp_path: Path) -> None:
    index = tmp_path / "rows.parquet"
    measure(**own_study.arguments(), index=index)
    cell = next(c for c in own_study.cells if c.stage == "pretrained")
    own_study.commit(cell, {"loss": 1.5})
    record = own_study.folders[cell.fingerprint] / "artifact.json"
    os.utime(record, ns=(1, 1))
    again = measure(**own_study.arguments(), index=index)
    assert [r["value"] for r in rows_of(again, stage="pretrained")] == [1.5]
    assert again.equals(measure(**own_study.arguments(), index=index))


@pytest.mark.parametrize("damage", [b"", b"PAR1 not parquet", None])
def test_a_damaged_index_is_made_anew(study: FakeStudy, table: pa.Table, tmp_path: Path, damage: bytes | None) -> None:
    index = tmp_path / "rows.parquet"
    measure(**study.arguments(), index=index)
    whole = index.read_bytes()
    index.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    assert to_csv(measure(**study.arguments(), index=index)) == to_csv(table)
    assert pq.read_table(index).num_rows > 0


def test_an_index_that_cannot_be_written_does_not_matter(study: FakeStudy, table: pa.Table, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert to_csv(measure(**study.arguments(), index=tmp_path / "file" / "rows.parquet")) == to_csv(table)


def test_files_that_cannot_be_seen_are_said_not_raised(own_study: FakeStudy) -> None:
    cell = next(c for c in own_study.cells if c.stage == "quality")
    (own_study.folders[cell.fingerprint] / "rows.parquet").unlink()
    other = next(c for c in own_study.cells if c.stage == "checkpoint")
    (own_study.folders[other.fingerprint] / "artifact.json").unlink()
    table = measure(**own_study.arguments())
    for hidden in (cell, other):
        (row,) = rows_of(table, fingerprint=hidden.fingerprint[:12])
        assert (row["state"], row["reason"], row["value"]) == ("done", "FS_VISIBILITY", None)


def test_rows_without_a_column_are_refused_by_name(own_study: FakeStudy) -> None:
    cell = next(c for c in own_study.cells if c.stage == "quality")
    own_study.commit(cell, rows={"task": ["a"], "metric": ["acc"], "value": [1.0]})
    with pytest.raises(ValueError, match=r"rows\.parquet has no column 'stderr'.*move its folder away"):
        measure(**own_study.arguments())


def test_an_axis_may_not_be_called_like_a_column(study: FakeStudy) -> None:
    with pytest.raises(ValueError, match="axis 'task' has the name of a column.*rename"):
        measure(**{**study.arguments(), "axes": ["step", "task"]})


def test_not_a_number_stays_and_is_not_missing(own_study: FakeStudy) -> None:
    cell = next(c for c in own_study.cells if c.stage == "pretrained")
    own_study.commit(cell, {"loss": math.nan, "name": "text", "flag": True})
    (row,) = rows_of(measure(**own_study.arguments()), stage="pretrained")
    assert row["metric"] == "loss" and math.isnan(row["value"])  # type: ignore[arg-type]


def test_two_cells_that_share_an_artifact_both_have_its_rows(study: FakeStudy) -> None:
    cell = next(c for c in study.cells if c.stage == "quality")
    twin = dataclasses.replace(cell, coords={"step": 7, "model": "twin"})
    table = measure([twin, cell], study.states, study.folders, study.axes)
    assert table["step"].to_pylist() == [7, 7, 0, 0]
    assert table["value"].to_pylist()[:2] == table["value"].to_pylist()[2:]


def test_adopted_results_are_read_where_they_lie(study: FakeStudy, tmp_path: Path) -> None:
    source, folder = tmp_path / "mine", tmp_path / "adopted"
    source.mkdir()
    folder.mkdir()
    pq.write_table(
        pa.table({"task": ["x"], "metric": ["acc"], "value": [0.25], "stderr": [0.1], "n": [4]}),
        source / "rows.parquet",
    )
    record = {"source": str(source), "source_is_file": False, "files": {"rows.parquet": {"size": 1}}, "metrics": {}}
    (folder / "artifact.json").write_text(json.dumps(record))
    cell = study.cells[0]
    table = measure([cell], {cell.fingerprint: DONE}, {cell.fingerprint: folder}, [])
    assert table["value"].to_pylist() == [0.25] and table["task"].to_pylist() == ["x"]


@pytest.mark.parametrize(
    "values, kind, shown",
    [
        ([1, 10, None], pa.int64(), [1, 10, None]),
        ([1, 0.5, None], pa.float64(), [1.0, 0.5, None]),
        ([True, False, None], pa.bool_(), [True, False, None]),
        (["main", 100, True], pa.string(), ["main", "100", "true"]),
    ],
)
def test_an_axis_has_the_narrowest_type(
    study: FakeStudy, values: list[object], kind: pa.DataType, shown: list[object]
) -> None:
    cells = [dataclasses.replace(study.cells[0], coords={} if v is None else {"a": v}) for v in values]  # type: ignore[dict-item]
    table = measure(cells, {study.cells[0].fingerprint: NEVER}, {}, ["a"])
    found = table["a"].type
    assert (found.value_type if pa.types.is_dictionary(found) else found) == kind
    assert table["a"].to_pylist() == shown


def test_a_study_without_cells_has_the_columns() -> None:
    assert measure([], {}, {}, ["step"]).column_names == [c for c in COLUMNS if c not in ("model", "shots")]
