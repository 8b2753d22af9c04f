"""The snapshot of a large study's cells says what expansion says, and is not believed once it is out of date."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from slurm import outline, submissions
from slurm.status import read
from tests.bench.planning import chain
from tests.slurm.lab import Lab
from toolkit.manifest.files import check_root
from toolkit.plan import Node
from toolkit.study import Cell, Stage, Study, StudyError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    check_root(tmp_path / "root")
    return tmp_path / "root"


def large(notes: Path) -> Study:
    """Over 2,000 cells: chains, a union, an input that is pinned, an adopted file, a stage without inputs."""
    study = chain(400)
    rows = Stage(job="prepare", inputs={"files": {"path": str(notes)}}, spec={"dataset": "instructions"})
    both = Stage(
        job="evaluate",
        inputs={"model": ["model", {"stage": "model", "seed": 3, "as": "pinned"}], "data": "people"},
        spec={"tasks": ["bios_qa"]},
    )
    return replace(study, stages={**study.stages, "rows": rows, "both": both})


def plain(nodes: object) -> list[object]:
    assert isinstance(nodes, list)
    return [describe(node) for node in nodes]


def describe(node: Node) -> object:
    inputs = {key: (upstream.name, upstream.fingerprint) for key, upstream in node.inputs.items()}
    return node.stage, node.name, node.job, node.fingerprint, inputs


def test_rows_are_what_expansion_says(root: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes.jsonl"
    notes.write_text("{}\n")
    study = large(notes)
    cells = outline.nodes(root, study)
    assert isinstance(cells[0], Cell) and len(cells) > outline.LARGE
    rows = outline.nodes(root, study)
    assert isinstance(rows[0], outline.Row), "the second time it is read"
    assert plain(rows) == plain(submissions.cells_of(root, study))
    assert all(upstream in rows[:i] for i in (1500, len(rows) - 1) for upstream in rows[i].inputs.values())
    assert read(root, "scale", rows).as_json() == read(root, "scale", cells).as_json()

    notes.write_text("[]\n")  # an adopted file has other content: other fingerprints
    fresh = outline.nodes(root, study)
    assert isinstance(fresh[0], Cell)
    assert {row.stage for row in rows if row.fingerprint not in {c.fingerprint for c in fresh}} == {
        "rows",
        "rows.files",
    }
    assert plain(outline.nodes(root, study)) == plain(fresh)
    notes.unlink()
    with pytest.raises(StudyError, match="there is no"):
        outline.nodes(root, study)


def test_another_text_or_damage_means_expansion(root: Path) -> None:
    study = chain(400)
    outline.nodes(root, study)
    (snapshot,) = (root / "index").glob("cells-*.json")
    good = snapshot.read_bytes()
    for changed in (
        chain(401),
        replace(
            study,
            stages={
                **study.stages,
                "people": Stage(
                    job="prepare", spec={"dataset": "bios", "people": 11}, axes=study.stages["people"].axes
                ),
            },
        ),
    ):
        assert isinstance(outline.nodes(root, changed)[0], Cell)
        assert plain(outline.nodes(root, changed)) == plain(submissions.cells_of(root, changed))
    for damage in (b"", good[:-20], good.replace(b"people", b"poeple", 1), b"\0" * len(good), b"[]"):
        snapshot.write_bytes(damage)
        assert isinstance(outline.nodes(root, study)[0], Cell)
        assert snapshot.read_bytes() == good, "it is made anew"


def test_a_small_study_has_no_snapshot(root: Path) -> None:
    assert len(outline.nodes(root, chain(3))) == 18
    assert not list((root / "index").iterdir())


def test_another_version_of_the_code_means_expansion(lab: Lab) -> None:
    """A default that a job changes is another fingerprint: the status must not come from what the old code said."""
    study = lab.study({"many": {"job": "probe", "axes": {"seed": list(range(2500))}}})
    lab.root.mkdir()
    assert lab.json("status", study)["stages"]["many"]["never-run"] == 2500
    snapshot = lab.root / "index" / "cells-lab.json"
    before = json.loads(snapshot.read_bytes().split(b"\n", 1)[1])
    job = lab.house / "jobs" / "probe.py"
    text = job.read_text()
    job.write_text(text.replace("VERSION = 1", "VERSION = 2"))
    try:
        assert lab.json("status", study)["stages"]["many"]["never-run"] == 2500
        after = json.loads(snapshot.read_bytes().split(b"\n", 1)[1])
    finally:
        job.write_text(text)
    assert not set(before["stages"][0]["fingerprints"]) & set(after["stages"][0]["fingerprints"])
