"""Reading what Slurm prints, and what follows for a claim: on texts and snapshots, without a Slurm."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from slurm import queue
from slurm.queue import Job, Queue, Snapshot, parse
from toolkit.failures import Failure

LINE = "55499098|1|55499101|RUNNING|2|None|c1n1|1:02|2026-11-24T05:45:02|a|b|"


def job(**words: Any) -> Job:
    plain: dict[str, Any] = {
        "id": "7_0", "raw": "9", "state": "RUNNING", "restarts": 0, "reason": "None", "nodes": "n1", "elapsed": "0:10",
        "start": "", "name": "mine",
    }  # fmt: skip
    return Job(**{**plain, **words})


def test_a_line_of_squeue() -> None:
    found = parse(LINE)
    assert (found.id, found.raw, found.state, found.restarts, found.name) == (
        "55499098_1", "55499101", "RUNNING", 2, "a|b"
    )  # fmt: skip
    single = parse("12|N/A|12|PENDING|0|(Resources)||0:00|N/A|x|")
    assert (single.id, single.waiting, single.alive) == ("12", True, False)


CLAIM = {
    "host": "elsewhere", "boot_id": "other", "pid_namespace": "pid:[1]", "pid": 1, "start_ticks": 1,
    "slurm": {"cluster": "lab", "job": "7_0", "restarts": 0, "name": "mine"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("jobs", "claimed", "alive"),
    [
        ([job()], 950, True),
        ([job(state="COMPLETING")], 950, True),
        ([job(state="FAILED")], 950, False),
        ([job(state="PENDING", restarts=1)], 950, False),
        ([job(restarts=1)], 950, False),
        ([job(state="PENDING")], 1050, None),  # the snapshot is older than the start of the job
        ([job(name="another study's, with the number of a job that a crash forgot")], 950, None),
        ([job(name="another study's, with the number of a job that a crash forgot")], 800, False),
        ([], 800, False),
        ([], 950, None),  # its processes may go on for a while: the worker's log must be silent too
    ],
)
def test_what_a_snapshot_says_of_a_claim(
    jobs: list[Job], claimed: float, alive: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = Queue(tmp_path)
    snapshot = Snapshot(began=1000.0, cluster="lab", jobs={j.id: j for j in jobs})
    monkeypatch.setattr(slurm, "snapshot", lambda: snapshot)
    assert slurm.alive(CLAIM, claimed) is alive
    assert slurm.alive({**CLAIM, "slurm": {**CLAIM["slurm"], "cluster": "other"}}, claimed) is None  # type: ignore[dict-item]


def fake(folder: Path, program: str, text: str) -> None:
    """A command of Slurm's that says `text` and counts how often it was asked."""
    path = folder / program
    path.write_text(f"#!/bin/sh\necho x >> '{folder}/{program}.asked'\ncat <<'END'\n{text}\nEND\n")
    path.chmod(0o755)


def test_squeue_is_asked_once_a_while_for_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, "squeue", LINE)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "lab")
    first = Queue(tmp_path, 60).snapshot()
    assert first.jobs["55499098_1"].nodes == "c1n1" and first.cluster == "lab"
    assert Queue(tmp_path, 60).snapshot() == first, "another process reads what this one was told"
    assert (tmp_path / "squeue.asked").read_text().count("x") == 1
    assert Queue(tmp_path, 60).snapshot(fresh=True).began >= first.began
    assert (tmp_path / "squeue.asked").read_text().count("x") == 2
    (tmp_path / "index" / next((tmp_path / "index").iterdir()).name).write_text('{"began": 1')
    assert Queue(tmp_path, 60).snapshot().jobs, "a torn file is no answer"


def test_without_slurm_nothing_is_known_and_it_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    slurm = Queue(tmp_path, 0.0)
    assert "there is no 'scontrol' here" in slurm.snapshot().error
    assert slurm.alive(CLAIM, 0.0) is None


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ("7_0|NODE_FAIL|n1\n7_0|RUNNING|n2", Failure.NODE_FAIL),
        ("7_0|OUT_OF_MEMORY|n1", Failure.OOM),
        ("7_0|TIMEOUT|n1", Failure.TIMEOUT),
        ("7_0|PREEMPTED|n1", Failure.PREEMPTED),
        ("7_0|CANCELLED by 0|n1", Failure.LOST),
        ("7_0|RUNNING|n1", Failure.LOST),
    ],
)
def test_how_a_job_ended_types_the_attempt(
    rows: str, reason: Failure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path, "sacct", rows)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found, message = queue.verdict(CLAIM)
    assert found is reason and "7_0" in message


def test_a_snapshot_from_the_future_is_not_believed_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, "squeue", LINE)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "lab")
    slurm = Queue(tmp_path, 60)
    slurm.file.parent.mkdir()
    slurm.file.write_text(json.dumps({"began": time.time() + 3600, "cluster": "lab", "jobs": {}, "error": ""}))
    assert slurm.snapshot().jobs
