"""Launching: two at once, Ctrl-C, a launcher that is killed, a root that cannot be written."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.slurm.lab import QUIET, Lab, alive, processes_of, until

WAIT = {"slow": {"job": "probe", "spec": {"do": "wait"}}, "after": {"job": "probe", "inputs": {"one": "slow"}}}


def test_two_launches_at_the_same_time(lab: Lab) -> None:
    """Both are started before either can see the other: exactly one of them runs the study."""
    study = lab.study(WAIT)
    both = [lab.start("launch", study) for _ in range(2)]
    loser = until(lambda: next((p for p in both if p.poll() is not None), None))
    (winner,) = [p for p in both if p is not loser]
    said = " ".join(loser.communicate()[0].split())
    assert loser.returncode == 4
    assert "study 'lab' is being run already: launch 1," in said
    assert f"started by process {winner.pid} on {socket.gethostname()}" in said
    lab.child("slow")
    lab.release()
    assert winner.wait(60) == 0
    assert lab.told("committed") == ["slow", "after"]
    assert len(list((lab.root / "submissions" / "lab").glob("*.json"))) == 1


def test_the_launcher_is_killed_and_the_workers_go_on(lab: Lab) -> None:
    study = lab.study(WAIT)
    launch = lab.start("launch", study)
    lab.child("slow")
    os.kill(launch.pid, signal.SIGKILL)
    launch.wait()
    assert lab.json("status", study)["stages"]["slow"]["running"] == 1
    said = lab.said("launch", study, code=4)
    assert f"launch 1, started by process {launch.pid}" in said and "status STUDY --watch" in said
    assert "being run" in lab.said("clean", "--yes", code=4), "nothing is removed under a worker's hands"
    lab.release()
    until(lambda: not processes_of(lab.folder))
    assert "nothing to do: all 2 cells of lab are done" in lab.said("launch", study)


def test_a_launcher_that_was_killed_before_it_started_a_worker_blocks_nobody(lab: Lab) -> None:
    study = lab.study({"quick": {"job": "probe"}})
    lab.run("launch", study)
    left = json.loads((lab.root / "submissions" / "lab" / "1.json").read_text())
    shutil.rmtree(lab.root / "artifacts" / "probe")
    del left["workers"]  # `prepared` is written first, by a process that is no more
    (lab.root / "submissions" / "lab" / "2.json").write_text(json.dumps({**left, "state": "prepared"}))
    lab.run("launch", study)
    assert [event["launch"] for event in lab.events() if event["event"] == "committed"] == [1, 3]


def test_ctrl_c_ends_everything_and_launching_again_resumes(lab: Lab) -> None:
    study = lab.study(
        {"before": {"job": "probe"}, "slow": {"job": "probe", "spec": {"do": "wait"}, "inputs": {"one": "before"}}}
    )
    launch = lab.start("launch", study, "--workers", 2)
    child = lab.child("slow")
    os.killpg(launch.pid, signal.SIGINT)  # what a terminal does: the whole group gets it
    assert launch.wait(60) == 130
    until(lambda: not processes_of(lab.folder), 10)
    assert not alive(child)
    told = lab.json("status", study)["stages"]
    assert (told["before"]["done"], told["slow"]["never-run"]) == (1, 1)
    again = lab.start("launch", study)
    lab.child("slow", attempt=2)
    lab.release()
    assert again.wait(60) == 0
    assert lab.told("committed") == ["before", "slow"], "what was done is not done again"


def test_a_failed_launch_names_what_a_worker_died_of(lab: Lab, house: Path) -> None:
    """A worker that cannot start at all (here: its code is broken) must not pass for a study that ran out of work."""
    study = lab.study({"quick": {"job": "probe"}})
    board = house / "slurm" / "board.py"
    text = board.read_text()
    board.write_text(text + "\nraise RuntimeError('this checkout is broken')\n")
    try:
        said = lab.said("launch", study, code=1)
    finally:
        board.write_text(text)
    assert "this checkout is broken" in said


def test_a_worker_takes_the_study_as_it_was_launched(lab: Lab) -> None:
    study = lab.study(WAIT)
    launch = lab.start("launch", study)
    lab.child("slow")
    lab.study({"other": {"job": "probe"}})  # the user edits the file meanwhile
    lab.release()
    assert launch.wait(60) == 0
    assert lab.told("committed") == ["slow", "after"]


def test_a_root_that_is_not_writable(lab: Lab) -> None:
    """As another user, in a process of its own: for root every folder is writable."""
    study = lab.study({"quick": {"job": "probe"}})
    lab.root.mkdir(mode=0o555)
    words = [sys.executable, "-m", "slurm.cli", "launch", study]
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("this is root, for whom all is writable, and there is no setpriv to be another user with")
        words = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", *words]
        for folder in (lab.folder, *lab.folder.parents[:-1], lab.house, lab.house.parent):
            if folder.is_relative_to(tempfile.gettempdir()) and folder.stat().st_mode & 0o005 != 0o005:
                folder.chmod(folder.stat().st_mode | 0o055)
        probe = subprocess.run([*words[:6], sys.executable, "-c", "pass"], capture_output=True, text=True, check=False)
        if probe.returncode:
            pytest.skip(f"another user cannot run this Python: {probe.stderr.strip()}")
    env = {
        **os.environ,
        **QUIET,
        "PYTHONPATH": str(lab.house),
        "TIDEMARK_ROOT": str(lab.root),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(words, env=env, cwd=lab.folder, capture_output=True, text=True, check=False)
    said = " ".join(done.stderr.split())
    assert done.returncode == 1, said
    assert f"the root '{lab.root}' cannot be written by user" in said and "Permission denied" in said
    assert "--root or TIDEMARK_ROOT" in said
    assert "Traceback" not in said
