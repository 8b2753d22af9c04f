"""Launching on a real Slurm: what is submitted, what survives, what is said. The cluster is that of `tests/cluster`."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.fixtures import calm, cluster  # noqa: F401
from tests.slurm.cluster_lab import ClusterLab
from tests.slurm.lab import until

pytestmark = pytest.mark.timeout(600)


def probe(do: str = "", **more: object) -> dict[str, object]:
    return {"job": "probe", "spec": {"do": do}, **more}


@pytest.fixture
def there(house: Path, calm: Cluster, tmp_path: Path) -> Iterator[ClusterLab]:  # noqa: F811
    lab = ClusterLab(house=house, folder=tmp_path, cluster=calm)
    yield lab
    lab.close()


def test_a_study_runs_and_launching_again_asks_slurm_nothing(there: ClusterLab) -> None:
    study = there.study({"one": probe(), "two": probe(inputs={"one": "one"}), "more": probe(axes={"seed": [1, 2, 3]})})
    said = there.launch(study)
    assert "2 workers of shape main" in said and "you may log out" in said
    made = there.done(study)
    assert set(made) == {"one", "two", "more"}
    job = made["one"]["provenance"]["machine"]
    assert job["SLURM_JOB_PARTITION"] == "main" and job["host"] in there.cluster.nodes
    config, there.cluster.env["SLURM_CONF"] = there.cluster.env["SLURM_CONF"], "/nowhere"
    try:
        assert "nothing to do: all 5 cells" in there.launch(study)
    finally:
        there.cluster.env["SLURM_CONF"] = config
    files = list((there.root / "submissions" / "lab" / "1-main").iterdir())
    assert len(files) <= 2 * 3 + 2, "three files a worker, the batch file and the link to it"


def test_preempted_it_saves_goes_back_into_the_queue_and_resumes(there: ClusterLab) -> None:
    there.jobs["default"] = {"shape": "low"}
    study = there.study({"slow": probe("wait")})
    there.launch(study)
    node = there.begun("slow")["node"]
    high = there.cluster.preempt(node)
    until(lambda: ("interrupted", 1, None) in there.told_of("slow"))
    there.release()
    there.cluster.cancel(high)
    made = there.done(study)
    assert made["slow"]["metrics"]["resumed"] is True
    assert there.told_of("slow")[-1] == ("committed", 2, None)


def test_the_time_limit_saves_goes_back_into_the_queue_and_resumes(there: ClusterLab) -> None:
    there.shapes["main"] |= {
        "hours": 1 / 60,
        "workers": 1,
    }  # submitit takes each signal of so short a job for a time-out
    study = there.study({"slow": probe("wait")})
    there.launch(study)
    there.begun("slow", attempt=2, seconds=180)
    assert there.told_of("slow")[:3] == [("started", 1, None), ("interrupted", 1, None), ("started", 2, None)]
    there.release()
    assert there.done(study)["slow"]["metrics"]["resumed"] is True


def test_what_does_not_save_in_time_is_killed_and_typed(there: ClusterLab) -> None:
    there.jobs["default"] = {"shape": "low"}
    there.profile["grace_seconds"] = 18
    study = there.study({"slow": probe("be deaf")})
    there.launch(study, "--retry", "PREEMPTED=0")
    event = until(lambda: next((e for e in there.events() if e["event"] == "started"), None))
    high = there.cluster.preempt(event["node"])
    until(lambda: ("failed", 1, "PREEMPTED") in there.told_of("slow"))
    there.cluster.cancel(high)
    until(lambda: not there.live(), 60)
    said = there.said("why", study, "slow")
    assert "PREEMPTED in attempt 1: the stage did not save in time, and was killed" in said
    assert there.told_of("slow") == [("started", 1, None), ("failed", 1, "PREEMPTED")], "as --retry says"


def test_scancel_lets_it_save_and_the_next_launch_resumes(there: ClusterLab) -> None:
    study = there.study({"slow": probe("wait")})
    there.launch(study)
    there.begun("slow")
    there.cluster.cancel(there.job_of("slow"))
    assert there.told_of("slow")[-1] == ("interrupted", 1, None)
    assert there.json("status", study)["stages"]["slow"]["never-run"] == 1
    there.release()
    there.launch(study)
    assert there.done(study)["slow"]["metrics"]["resumed"] is True


def test_a_lost_node_costs_an_attempt_which_is_typed(there: ClusterLab) -> None:
    study = there.study({"slow": probe("wait")})
    there.launch(study)
    node = there.begun("slow")["node"]
    there.cluster.kill_node(node)
    event = there.begun("slow", attempt=2, seconds=180)
    assert event["node"] != node or there.cluster.processes.pid(node)
    assert ("lost", 1, "NODE_FAIL") in there.told_of("slow")
    there.release()
    there.done(study)


def test_where_preemption_cancels_the_next_launch_goes_on(there: ClusterLab) -> None:
    there.jobs["default"] = {"shape": "low"}
    there.cluster.run("scontrol", "update", "partitionname=low", "preemptmode=cancel", "gracetime=10")
    try:
        study = there.study({"slow": probe("wait")})
        there.launch(study)
        high = there.cluster.preempt(there.begun("slow")["node"])
        until(lambda: ("interrupted", 1, None) in there.told_of("slow"))
        there.cluster.cancel(high)
    finally:
        grace = there.cluster.options.grace
        there.cluster.run("scontrol", "update", "partitionname=low", "preemptmode=requeue", f"gracetime={grace}")
    until(lambda: not [job for job in there.live() if there.cluster.state(job) == "RUNNING"])
    there.release()
    there.launch(study)
    assert there.done(study)["slow"]["metrics"]["resumed"] is True


def test_what_runs_out_of_memory_is_tried_again_with_half_as_much_at_once(there: ClusterLab) -> None:
    there.shapes["main"] |= {"memory": 0.5, "workers": 1}
    study = there.study({"hungry": probe("eat")})
    there.launch(study)
    made = there.done(study)
    assert made["hungry"]["metrics"]["halvings"] == 2
    reasons = [reason for event, _, reason in there.told_of("hungry") if event in ("failed", "lost")]
    assert reasons == ["OOM", "OOM"]


def test_a_restarted_controller_and_a_dead_slurmdbd_are_no_matter(there: ClusterLab) -> None:
    study = there.study({"slow": probe("wait"), "after": probe(inputs={"one": "slow"})})
    there.launch(study)
    there.begun("slow")
    there.cluster.stop_slurmdbd()
    there.cluster.stop_controller()
    said = there.said("status", study)
    assert "slow" in said and "step 3/10" in said, "its worker may live: nobody can say that it does not"
    time.sleep(3)
    assert "Slurm does not answer" in there.said("status", study)
    there.cluster.start_controller()
    time.sleep(3)
    row = there.json("status", study)["running"][0]
    assert row["node"] in there.cluster.nodes and row["job"] in there.live()
    there.release()
    assert set(there.done(study)) == {"slow", "after"}
    assert [event["event"] for event in there.events()].count("started") == 2, "nothing was tried twice"


def test_a_worker_that_dies_at_once_is_told_of_also_without_accounting(there: ClusterLab) -> None:
    study = there.study({"one": probe()})
    there.profile["python"] = "/no/such/python"
    there.launch(study)
    until(lambda: not there.live(), 30)
    time.sleep(2)
    assert "1 FAILED" in there.said("why", study, "one")
    assert there.json("status", study)["cluster"]["ended"] == [{"shape": "main", "state": "FAILED", "workers": 1}]


def test_a_worker_from_another_checkout_refuses(there: ClusterLab) -> None:
    study = there.study({"one": probe()})
    there.profile["setup"] = [f"export PYTHONPATH={there.folder}/elsewhere"]
    (there.folder / "elsewhere").mkdir()
    there.launch(study)
    until(lambda: not there.live(), 60)
    log = next((there.root / "submissions" / "lab" / "1-main").glob("*_log.out")).read_text()
    assert f"the launch runs Tidemark from {there.house}, and here it is imported from" in log


def test_names_reach_no_shell(there: ClusterLab) -> None:
    there.place = there.folder / 'it\'s "a" root; $(touch pwned) `touch pwned` & * é'
    study = there.study({"one": probe(), "a b; $(touch pwned)": probe("look", inputs={"one": "one"})})
    there.profile["setup"] = ["export MARK='two words'"]
    there.launch(study)
    there.done(study)
    (seen,) = there.root.glob("artifacts/probe/*look*/seen.txt")
    assert "MARK=two words" in seen.read_text().splitlines()
    assert not list(there.folder.rglob("pwned")) and not Path("pwned").exists()
    for name in ("new\nline", "per%cent"):
        there.place = there.folder / name
        assert "which sbatch would not read as it stands" in there.launch(study, code=1)


def test_cancelling_a_cell_a_stage_and_a_study(there: ClusterLab) -> None:
    there.shapes["main"]["workers"] = 1
    stages = {"slow": probe("wait"), "more": probe("wait", axes={"seed": [1, 2]}), "last": probe()}
    study = there.study(stages)
    there.launch(study)
    there.begun("slow")
    assert "2 cells are cancelled" in there.said("cancel", study, "more")
    assert "1 cells are cancelled" in there.said("cancel", study, "slow")
    until(lambda: "last" in there.told("committed") and not there.live(), 60)
    assert there.told_of("slow") == [("started", 1, None), ("interrupted", 1, None)]
    assert "more[seed=1]" not in there.told("started")
    there.launch(study)  # a person's word: what was cancelled is wanted again
    there.begun("slow", attempt=2)
    assert "end once their stages have saved" in there.said("cancel", study)
    until(lambda: not there.live(), 60)
    assert there.told_of("slow")[-1] == ("interrupted", 2, None)
    assert "there is nothing to cancel" in there.said("cancel", study, code=1)


def test_a_device_fault_is_tried_on_another_node(there: ClusterLab) -> None:
    there.shapes["main"]["workers"] = 1
    study = there.study({"odd": probe("fault once")})
    there.launch(study)
    made = there.done(study, 120)
    first, second = [e["node"] for e in there.events() if e["event"] == "started"]
    assert first != second and made["odd"]["provenance"]["attempt"] == 2
    assert f"node {first} is left out of later launches: 1 GPU_FAULT" in there.said("status", study)
    later = there.study({"odd": probe("fault once"), "more": probe()})
    assert f"node {first} is excluded: 1 GPU_FAULT" in there.launch(later)
    there.done(later)
    arrays = json.loads((there.root / "submissions" / "lab" / "2.json").read_text())["arrays"]
    assert [array["exclude"] for array in arrays.values()] == [[first]]


def test_an_idle_worker_gives_its_place_back_and_comes_back(there: ClusterLab) -> None:
    """The worker with the GPU can run nothing before `slow` is done."""
    there.shapes["gpu"] = {"partition": "main", "gpus": 2, "cpus": 1, "memory": 0.5, "workers": 1}
    there.jobs |= {"probe": {"shape": "main", "threads": 1}, "generate": {"shape": "gpu"}}
    there.profile["idle_minutes"] = 0.1
    text = (there.house / "jobs" / "probe.py").read_text()
    (there.house / "jobs" / "second.py").write_text(text)
    there.jobs["second"] = {"shape": "gpu"}
    try:
        study = there.study(
            {"slow": probe("wait"), "after": {"job": "second", "spec": {"do": "look"}, "inputs": {"one": "slow"}}}
        )
        there.launch(study)
        there.begun("slow")
        until(lambda: [e for e in there.events() if e.get("stop") == "idle"], 60)
        until(lambda: "BeginTime" in there.said("status", study) or "JobHeldUser" in there.said("status", study), 30)
        there.release()
        made = there.done(study, 120)
    finally:
        (there.house / "jobs" / "second.py").unlink()
    assert made["after"]["metrics"]["processes"] == 2, "one rank a GPU"
    (seen,) = there.root.glob("artifacts/second/*/seen.txt")
    assert "CUDA_VISIBLE_DEVICES=0,1" in seen.read_text().splitlines()


def test_two_launches_at_once_submit_once(there: ClusterLab) -> None:
    study = there.study({"slow": probe("wait", axes={"seed": [1, 2, 3, 4]})})
    both = [there.start("launch", study, "--cluster", there.write_profile()) for _ in range(2)]
    codes = sorted(process.wait(60) for process in both)
    assert codes in ([0, 0], [0, 4])
    assert len(there.live()) == 2
    assert "nothing to submit: " in there.launch(study)
    there.release()
    until(lambda: there.release() or not there.live(), 60)
    there.done(study)


def test_a_launch_killed_at_any_moment_submits_nothing_twice(there: ClusterLab) -> None:
    study = there.study({"slow": probe("wait", axes={"seed": [1, 2]})})
    profile = there.write_profile()
    for number in range(8):
        process = there.start("launch", study, "--cluster", profile)
        submissions = there.root / "submissions" / "lab"
        until(lambda: process.poll() is not None or list(submissions.glob("*.json")), 30)
        time.sleep(0.06 * number)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        time.sleep(0.5)
        assert len(there.live()) <= 2
    there.launch(study)
    until(lambda: len(there.live()) == 2)
    until(lambda: there.release() or not there.live(), 90)
    there.done(study)
    assert sorted(there.told("committed")) == ["slow[seed=1]", "slow[seed=2]"]


def test_limits_are_read_live(there: ClusterLab) -> None:
    there.shapes["main"]["workers"] = 20
    study = there.study({"quick": probe(axes={"seed": list(range(20))})})
    there.cluster.run("sacctmgr", "-iQ", "modify", "qos", "normal", "set", "MaxSubmitJobsPerUser=3")
    try:
        said = there.launch(study)
        assert "3 workers of shape main" in said and "MaxSubmitJobsPerUser of QOS normal is 3" in said
        there.done(study)
    finally:
        there.cluster.run("sacctmgr", "-iQ", "modify", "qos", "normal", "set", "MaxSubmitJobsPerUser=-1")


def test_what_needs_the_internet_runs_where_it_is(there: ClusterLab) -> None:
    """On the host that launches, or on the shape that has it."""
    text = (there.house / "jobs" / "probe.py").read_text()
    (there.house / "jobs" / "fetch.py").write_text(text.replace("VERSION = 1", "VERSION = 1\nINTERNET = True"))
    try:
        study = there.study({"hub": {"job": "fetch"}, "after": probe(inputs={"one": "hub"})})
        assert "1 cells need the internet, which no shape has: they run here" in there.launch(study)
        hosts = {stage: made["provenance"]["machine"]["host"] for stage, made in there.done(study).items()}
        assert hosts["hub"] not in there.cluster.nodes and hosts["after"] in there.cluster.nodes
        there.shapes["online"] = {"partition": "main", "internet": True, "workers": 1}
        study = there.study({"hub": {"job": "fetch", "spec": {"seed": 1}}})
        assert "1 workers of shape online" in there.launch(study)
        there.done(study)
        (path,) = there.root.glob("artifacts/fetch/*seed-1*/artifact.json")
        assert json.loads(path.read_text())["provenance"]["machine"]["host"] in there.cluster.nodes
    finally:
        (there.house / "jobs" / "fetch.py").unlink()


def test_a_container_holds_the_python_of_the_workers(there: ClusterLab) -> None:
    """With a program in the place of Apptainer that notes what it is given and runs it without a container."""
    (there.folder / "bin").mkdir()
    program = there.folder / "bin" / "apptainer"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {there.folder}/given\nshift 5\nexec "$@"\n')
    program.chmod(0o755)
    there.profile |= {
        "setup": [f"export PATH={there.folder}/bin:$PATH"],
        "container": {"runtime": "apptainer", "image": "/images/a b.sif", "mounts": ["/data"], "options": ["--nv"]},
    }
    study = there.study({"one": probe()})
    there.launch(study)
    there.done(study)
    given = (there.folder / "given").read_text().splitlines()
    assert given[:5] == ["exec", "--nv", "--bind", "/data", "/images/a b.sif"] and "submitit.core._submit" in given
