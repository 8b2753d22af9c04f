"""What a study has cost and will cost: the division of time on made-up logs and rows of sacct, and all of it on a real
cluster, where the sums are held against sacct's own."""

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slurm import spent
from slurm.profiles import Shape
from slurm.spent import Cost, Spent
from tests.cluster.cluster import Cluster
from tests.cluster.fixtures import calm, cluster  # noqa: F401
from tests.slurm.lab import Lab, alive, processes_of, until
from toolkit.stage import Context

GPU = Shape(nodes=2, gpus=4, cpus=8, hours=1)
ARRAY = "tidemark-lab-node-1"


class Log:
    """A made-up log: what workers say, each by the clock of its own host."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def say(self, writer: str, time: float, event: str, **more: Any) -> None:
        self.events.append({"writer": writer, "time": time, "event": event, "launch": 1, **more})

    def worker(self, writer: str, time: float, job: str = "", restarts: int = 0) -> None:
        who = {"worker": writer, **({"slurm": {"job": job, "restarts": restarts}} if job else {})}
        self.say(writer, time, "worker-started", who=who, shape="node")

    def cell(self, writer: str, time: float, event: str, name: str, attempt: int = 1, **more: Any) -> None:
        self.say(writer, time, event, cell=name, fingerprint=f"print of {name}", attempt=attempt, **more)

    def divide(self, rows: list[dict[str, str]], fate: str = "LOST") -> Spent:
        runs = spent.listed(rows, {ARRAY: GPU})
        gathered = spent.gather(spent.workers(self.events), runs, {(1, "node"): GPU})
        return spent.divide(gathered, lambda run, worker, attempt: (fate, None))


def row(
    job: str, seconds: int, state: str = "COMPLETED", name: str = ARRAY, tres: str = "cpu=16,node=2,gres/gpu=8"
) -> dict[str, str]:
    values = (job, state, str(seconds), "2", "16", tres, "", name)
    return dict(zip(spent.FIELDS, values, strict=True))


def cost(attempts: int, milliseconds: int, nodes: int = 2, cpus: int = 16, gpus: int = 8) -> Cost:
    made = Cost(attempts=attempts)
    made.add(spent.Size(nodes=nodes, cpus=cpus, gpus=gpus), milliseconds)
    return made


def test_a_runs_time_goes_to_its_attempts_and_the_rest_is_waiting() -> None:
    log = Log()
    log.worker("a", 100.0, "7_0")
    for begin, name, seconds in (
        (101.0, "first[seed=1]", 10.25),
        (112.0, "first[seed=2]", 9.75),
        (125.0, "last", 30.0),
    ):
        log.cell("a", begin, "started", name)
        log.cell("a", begin + seconds, "committed", name, seconds=seconds)
    log.say("a", 160.0, "worker-ended")
    found = log.divide([row("7_0", 70)])
    assert found.stages == {"first": cost(2, 20_000), "last": cost(1, 30_000)} and not found.failures
    assert found.idle == cost(0, 20_000) and found.accounting == cost(3, 70_000) and found.log == Cost()
    assert found.total() == spent.total([*found.stages.values(), found.idle])


def test_each_restart_has_its_own_row_and_what_failed_stands_apart() -> None:
    """A preempted attempt, one whose node went (another worker says so), one that failed, one that was interrupted."""
    log = Log()
    log.worker("a", 1000.0, "7_0")
    log.cell("a", 1002.0, "started", "slow")  # and then not a word
    log.worker("b", 50.0, "7_0", restarts=1)  # another node, whose clock is slow
    log.cell("b", 51.0, "lost", "slow", 1, reason="NODE_FAIL")
    log.cell("b", 51.0, "started", "slow", 2)
    log.cell("b", 61.0, "interrupted", "slow", 2, seconds=9.0)
    log.worker("c", 80.0, "7_0", restarts=2)
    log.cell("c", 81.0, "started", "slow", 3)
    log.cell("c", 85.0, "failed", "slow", 3, seconds=4.0, reason="OOM")
    log.cell("c", 86.0, "started", "slow", 4)
    log.cell("c", 96.0, "committed", "slow", 4, seconds=9.5, seconds_before=13.0)
    rows = [row("7_0", 30, "NODE_FAIL"), row("7_0", 15, "REQUEUED"), row("7_0", 20), row("7_0", 3, "PENDING")]
    found = log.divide(rows)
    assert found.stages == {"slow": cost(1, 9_500)}
    assert found.failures == {
        ("slow", "NODE_FAIL"): cost(1, 28_000),  # to the end of its run, from two seconds after its worker's first word
        ("slow", "interrupted"): cost(1, 9_000),
        ("slow", "OOM"): cost(1, 4_000),
    }
    assert found.accounting == cost(4, 65_000) and found.idle == cost(0, 65_000 - 50_500)


def test_what_is_said_of_an_attempt_by_several() -> None:
    """`committed` outranks all; the worker's own word outranks another's, whichever is read first."""
    log = Log()
    log.worker("other", 5.0)
    for name in ("saved", "own", "theirs"):
        log.cell("other", 6.0, "lost", name, reason="PREEMPTED")
    log.worker("a", 100.0)
    log.cell("a", 100.0, "started", "saved")
    log.cell("a", 110.0, "committed", "saved", seconds=8.0)
    log.cell("a", 110.0, "started", "own")
    log.cell("a", 120.0, "failed", "own", seconds=7.0, reason="BUG")
    log.cell("a", 120.0, "started", "theirs")
    ends = {a.stage: (a.end, a.seconds) for w in spent.workers(log.events) for a in w.attempts}
    assert ends == {"saved": ("committed", 8.0), "own": ("BUG", 7.0), "theirs": ("PREEMPTED", None)}


def test_attempts_never_take_more_than_their_run_had() -> None:
    """A job that was suspended: sacct leaves those seconds out, the attempts do not. Not a millisecond is lost."""
    log = Log()
    log.worker("a", 0.0, "7_0")
    for i in range(3):
        log.cell("a", 100.0 * i, "started", f"cell[i={i}]")
        log.cell("a", 100.0 * i + 99, "committed", f"cell[i={i}]", seconds=100.0)
    found = log.divide([row("7_0", 100)])
    assert found.stages == {"cell": cost(3, 99_999)} and found.idle == cost(0, 1)


def test_a_worker_that_accounting_does_not_list_counts_by_the_log() -> None:
    log = Log()
    log.worker("late", 10.0, "8")
    log.cell("late", 11.0, "started", "first")
    log.cell("late", 16.0, "committed", "first", seconds=5.0)
    log.cell("late", 16.0, "started", "second")
    log.say("late", 40.0, "alive")
    log.worker("here", 500.0)
    found = log.divide([row("7_0", 60)], fate="running")
    assert found.stages == {"first": cost(1, 5_000), "second": cost(1, 24_000)}
    assert found.log == cost(2, 30_000) and found.accounting == cost(0, 60_000), "a job that never said a word waited"
    log.events[-1]["shape"] = "login"  # not one of the profile's: this host, one CPU
    log.say("here", 501.0, "worker-ended")
    assert log.divide([]).log.cpus == 16 * 30_000 + 1_000


@pytest.mark.parametrize(
    ("tres", "gpus", "tracked"),
    [
        ("billing=4,cpu=16,gres/gpu=3,mem=4G", 3, True),
        ("cpu=16,gres/gpu:a100=3,gres/gpu=3", 3, True),
        ("cpu=16,gres/gpu:a100=3,gres/gpu:h100=2", 5, True),
        ("cpu=16,mem=4G,node=2", 8, False),  # the shape's, on both nodes
    ],
)
def test_gpus_are_read_off_the_allocation_or_else_the_shape(tres: str, gpus: int, tracked: bool) -> None:
    (run,) = spent.listed([row("7", 1, tres=tres)], {ARRAY: GPU}).values()
    assert (run.size, run.tracked) == (spent.Size(nodes=2, cpus=16, gpus=gpus), tracked)
    bare = spent.listed([row("7", 1, tres="cpu=16")], {ARRAY: Shape(hours=1)})
    assert bare["7", 0].tracked and bare["7", 0].size.gpus == 0, "nobody asked for any"


def test_a_number_that_was_given_out_again_is_not_ours() -> None:
    rows = [row("7_0", 50), row("7_0", 999, name="wrap"), row("7_0", 60)]
    assert [run.milliseconds for run in spent.listed(rows, {ARRAY: GPU}).values()] == [50_000, 60_000]


# -- the commands


PROFILE = {
    "poll_seconds": 2, "grace_seconds": 20, "idle_minutes": 0.2,
    "shapes": {
        name: {"partition": name, "gpus": gpus, "cpus": cpus, "memory": 1, "hours": 0.2, "workers": 2}
        for name, gpus, cpus in (("main", 2, 1), ("low", 0, 2))
    },
    "jobs": {"default": {"shape": "main"}},
}  # fmt: skip
STAGES: dict[str, Any] = {
    "first": {"job": "probe", "axes": {"seed": [1, 2]}, "resources": {"cpus": 2}},  # which the shape `low` has
    "slow": {"job": "probe", "spec": {"do": "wait"}},
}


@pytest.fixture
def site(calm: Cluster, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:  # noqa: F811
    """The cluster that the commands of a lab talk to, with a profile in its folder; they note what they ask it."""
    asks = lab.folder / "asks"
    asks.mkdir()
    for name in ("squeue", "sacct"):
        real = shutil.which(name, path=calm.env["PATH"])
        (asks / name).write_text(f'#!/bin/sh\necho {name} >> {asks}/said\nexec {real} "$@"\n')
        (asks / name).chmod(0o755)
    monkeypatch.setenv("SLURM_CONF", calm.env["SLURM_CONF"])
    monkeypatch.setenv("PATH", f"{asks}:{calm.env['PATH']}")
    (lab.folder / "site.yaml").write_text(json.dumps(PROFILE))
    yield calm
    calm.cancel()


def sums(cluster: Cluster, root: Path) -> dict[str, int]:  # noqa: F811
    """Seconds as sacct adds them up itself (CPUTimeRAW), for all jobs of the submissions; waits until all have ended."""
    jobs = {
        a["job"]
        for file in root.glob("submissions/lab/*.json")
        for a in json.loads(file.read_text())["arrays"].values()
    }
    ask = ("sacct", "-DXnP", "-j", ",".join(jobs), "-o", "State,ElapsedRaw,NNodes,CPUTimeRAW,AllocTRES")

    def ended() -> list[list[str]]:
        rows = [line.split("|") for line in cluster.run(*ask).splitlines()]
        return [] if {row[0] for row in rows} & {"RUNNING", "PENDING", "COMPLETING"} else rows

    rows = until(ended)
    gpus = [int(next((w[9:] for w in row[4].split(",") if w.startswith("gres/gpu=")), 0)) for row in rows]
    return {
        "node": sum(int(row[1]) * int(row[2]) for row in rows),
        "cpu": sum(int(row[3]) for row in rows),
        "gpu": sum(int(row[1]) * count for row, count in zip(rows, gpus, strict=True)),
        "rows": len(rows),
    }


def begun(lab: Lab, attempt: int) -> str:
    """The job in which an attempt at `slow` waits for its release."""

    def found() -> dict[str, Any] | None:
        kind = ("started", "slow", attempt)
        return next((e for e in lab.events() if (e["event"], e.get("cell"), e.get("attempt")) == kind), None)

    event = until(found)
    until(lambda: (lab.work(event["fingerprint"]) / f"log.{attempt}.txt").exists())
    (start,) = (e for e in lab.events() if e["event"] == "worker-started" and e["writer"] == event["writer"])
    return str(start["who"]["slurm"]["job"])


def kill(lab: Lab, job: str) -> None:
    """SIGKILL the worker of a job, found from this machine: it dies without a word."""
    found = []
    for pid in processes_of(lab.folder):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        inside = f"SLURM_JOB_ID={job}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        if inside and b"submitit.core._submit" in words and b"srun" not in words[0]:
            found.append(pid)
    os.kill(min(found), signal.SIGKILL)  # the stage is its child, and goes with it


def test_usage_adds_up_to_what_sacct_says(site: Cluster, lab: Lab) -> None:
    """A job whose first worker is lost, and that is then requeued and comes to its end."""
    study = lab.study(STAGES)
    assert lab.json("usage", study)["total"]["node_hours"] == 0
    lab.run("launch", "--cluster", lab.folder / "site.yaml", study)
    job = begun(lab, 1)
    running = until(lambda: (told := lab.json("usage", study))["from"]["accounting"]["gpu_hours"] and told)
    assert running["stages"]["slow"]["attempts"] == 1 and running["stages"]["slow"]["gpu_hours"] > 0
    kill(lab, job)
    site.wait_state(job, "FAILED")
    lost = until(lambda: lab.json("usage", study)["failures"])
    assert [(row["stage"], row["end"]) for row in lost] == [("slow", "LOST")] and not lab.told("lost"), "nobody said so"
    site.run("scontrol", "requeue", job)
    assert begun(lab, 2) == job
    time.sleep(2)  # whole seconds are all that sacct knows
    lab.release()
    until(lambda: "slow" in lab.told("committed"))
    expected = sums(site, lab.root)
    (lab.folder / "asks" / "said").unlink()
    told = lab.json("usage", study)
    assert (lab.folder / "asks" / "said").read_text() == "sacct\n", "one question, whatever ran"
    for name in ("node", "cpu", "gpu"):
        lines = [*told["stages"].values(), *told["failures"], told["idle"]]
        assert sum(line[f"{name}_hours"] for line in lines) * 3600 == pytest.approx(expected[name], abs=1e-9)
        assert told["from"]["accounting"][f"{name}_hours"] * 3600 == expected[name] > 0
    assert expected["rows"] == 4 and told["said"] == [] and told["from"]["log"]["node_hours"] == 0
    (failure,) = told["failures"]
    assert (failure["stage"], failure["end"], failure["attempts"]) == ("slow", "LOST", 1)
    assert failure["gpu_hours"] > running["stages"]["slow"]["gpu_hours"]
    (seconds,) = (e["seconds"] for e in lab.events() if e["event"] == "committed" and e["cell"] == "slow")
    assert 2 * (seconds - 1) < told["stages"]["slow"]["gpu_hours"] * 3600 < 2 * seconds + 1e-6
    assert (told["stages"]["first"]["attempts"], told["stages"]["first"]["gpu_hours"]) == (2, 0)

    site.stop_slurmdbd()
    blind = lab.json("usage", study)
    assert "accounting does not answer (sacct: " in blind["said"][0] and "from the log alone" in blind["said"][0]
    assert "Connection refused" in blind["said"][0]
    assert blind["from"]["accounting"]["node_hours"] == 0 < blind["total"]["gpu_hours"] < told["total"]["gpu_hours"]
    assert blind["stages"]["slow"]["gpu_hours"] * 3600 == pytest.approx(2 * seconds, abs=1e-6), "the log has that"
    shown = lab.run("usage", study)
    assert "Connection refused" in shown.stderr
    rows = [line.split() for line in shown.stdout.splitlines()]
    assert [(" ".join(row[:-4]), row[-4]) for row in rows[1:]] == [
        ("first", "2"), ("slow", "1"), ("failed, lost, interrupted", "1"), ("slow: LOST", "1"), ("start-up and waiting", "·"),
        ("total", "4"),
    ]  # fmt: skip


def test_usage_without_slurm_counts_by_the_log(lab: Lab) -> None:
    study = lab.study({"first": STAGES["first"], "bad": {"job": "probe", "spec": {"do": "raise"}}})
    lab.run("launch", study, code=3)
    told = lab.json("usage", study)
    assert told["stages"]["first"]["attempts"] == 2 and "workers ran outside Slurm" in told["said"][0]
    (bad,) = told["failures"]
    assert (bad["stage"], bad["end"], bad["attempts"]) == ("bad", "BUG", 2)
    ends = [e for e in lab.events() if e.get("cell") == "bad" and "seconds" in e]
    assert bad["cpu_hours"] * 3600 == pytest.approx(sum(e["seconds"] for e in ends), abs=1e-6)
    assert told["from"]["log"] == told["total"] and told["total"]["gpu_hours"] == 0


def test_a_commit_that_was_not_logged_and_what_runs_on_this_machine(lab: Lab) -> None:
    study = lab.study({"first": STAGES["first"]})
    lab.run("launch", study)
    (segment,) = lab.root.glob("log/lab/*.jsonl")
    lines = segment.read_text().splitlines(keepends=True)
    segment.write_text("".join(line for line in lines if '"committed","seconds_before"' not in line))
    assert lab.told("committed") == []
    told = lab.json("usage", study)
    assert told["stages"]["first"]["attempts"] == 2 and not told["failures"]
    made = [json.loads(p.read_text())["provenance"]["seconds"] for p in lab.root.glob("artifacts/*/*/artifact.json")]
    assert told["stages"]["first"]["cpu_hours"] * 3600 == pytest.approx(sum(made), abs=1e-6)

    waits = lab.study({"slow": STAGES["slow"]}, "waits")
    launch = lab.start("launch", waits)
    child = lab.child("slow", study="waits")
    assert lab.json("usage", waits)["stages"]["slow"]["attempts"] == 1
    os.kill(lab.worker("waits"), signal.SIGKILL)
    launch.wait(60)
    until(lambda: not alive(child))
    (lost,) = lab.json("usage", waits)["failures"]
    assert (lost["stage"], lost["end"]) == ("slow", "LOST")


def test_plan_cost_takes_what_is_left_times_what_such_cells_took(lab: Lab) -> None:
    site = lab.folder / "site.yaml"
    site.write_text(json.dumps(PROFILE | {"jobs": {"default": {"shape": "main"}, "prepare": {"shape": "low"}}}))
    people = {"job": "prepare", "spec": {"dataset": "bios", "people": 4}}
    slow = {**STAGES["slow"], "axes": {"seed": [1]}}
    study = lab.study({"people": people, "slow": slow})
    launch = lab.start("launch", study)
    lab.child("slow[seed=1]")
    lab.release()
    assert launch.wait(60) == 0
    done = lab.json("plan", study, "--cost", "--cluster", site)
    assert done["stages"] == {} and done["total"]["left"] == done["total"]["node_hours"] == 0

    study = lab.study({
        "people": people,
        "slow": {**slow, "axes": {"seed": [1, 2, 3]}},
        "after": {"job": "probe", "inputs": {"one": "slow"}},
        "words": {"job": "tokenizer", "inputs": {"data": "people"}, "spec": {"split": "pretrain", "vocab_size": 300}},
    })  # fmt: skip
    Context(state=state_of(lab, study, "slow[seed=2]")).progress(3, 10)
    words = ("plan", study, "--cost", "--cluster", site, "--set", "people.people=8")
    told = lab.json(*words)

    took = {}
    for path in lab.root.glob("artifacts/*/*/artifact.json"):
        made = json.loads(path.read_text())["provenance"]
        took[made["stage"]] = (made["seconds"] + made["seconds_before"]) / 3600
    parts = {"people": took["people"], "slow": 1.7 * took["slow"], "after": 3 * took["slow"], "words": 0.0}
    assert {name: stage["left"] for name, stage in told["stages"].items()} == {
        "people": 1, "slow": 2, "after": 3, "words": 1
    }  # fmt: skip
    assert {name: stage["like"] for name, stage in told["stages"].items()} == {
        "people": {"stage": 1}, "slow": {"size": 2}, "after": {"job": 3}, "words": {"unknown": 1}
    }  # fmt: skip
    assert (told["stages"]["people"]["shapes"], told["stages"]["slow"]["shapes"]) == (["low"], ["main"])
    near = pytest.approx
    for name, stage in told["stages"].items():
        cpus, gpus = (2, 0) if name == "people" else (1, 2)
        assert stage["cpu_hours"] == near(cpus * parts[name], abs=1e-6), name
        assert stage["gpu_hours"] == near(gpus * parts[name], abs=1e-6), name
    assert told["stages"]["slow"]["hours_each"] == near([took["slow"], took["slow"]])
    assert told["stages"]["words"]["hours_each"] is None
    assert (told["total"]["left"], told["total"]["unknown"]) == (7, 1)
    assert told["total"]["gpu_hours"] == near(sum(stage["gpu_hours"] for stage in told["stages"].values()))

    lines = [line.split() for line in lab.run(*words).stdout.splitlines()]
    assert lines[4][:5] == ["words", "main", "1", "unknown", "unknown"] and lines[5][:4] == [
        "total",
        "7",
        "at",
        "least",
    ]
    assert lines[2][:3] == ["slow", "main", "2"] and lines[2][4:6] == ["same", "size"]


def state_of(lab: Lab, study: str, cell: str) -> Path:
    """The folder of what survives a cell's attempts."""
    state = lab.work(lab.said("why", study, cell).split(" is never-run probe ")[1]) / "state"
    state.mkdir(parents=True)
    return state


def test_a_cell_without_kin_is_estimated_from_its_own_progress(lab: Lab) -> None:
    study = lab.study({"slow": STAGES["slow"] | {"inputs": {}}})
    site = lab.folder / "site.yaml"
    site.write_text(json.dumps(PROFILE))
    state = state_of(lab, study, "slow")
    for step, eta, expected in ((0, None, None), (25, 3600.0, 1.0), (100, 0.0, None)):
        (state / "progress.json").write_text(json.dumps({"step": step, "total": 100, "eta_seconds": eta}))
        told = lab.json("plan", study, "--cost", "--cluster", site)
        (stage,) = told["stages"].values()
        if expected is None:
            assert stage["like"] == {"unknown": 1} and told["total"]["unknown"] == 1
        else:
            assert stage["like"] == {"progress": 1} and stage["node_hours"] == expected
            assert stage["hours_each"] == [pytest.approx(4 / 3)] * 2 and stage["gpu_hours"] == 2 * expected


def test_plan_cost_needs_a_cluster_that_there_is(lab: Lab) -> None:
    study = lab.study(STAGES)
    for words in (["--cost"], ["--cluster", "h100x8"]):
        assert "--cost and --cluster NAME go together" in lab.said("plan", study, *words, code=1)
    assert "did you mean 'h100x8'" in lab.said("plan", study, "--cost", "--cluster", "h100x9", code=1)
    assert lab.json("plan", study, "--cost", "--cluster", "h100x8")["total"]["unknown"] == 3
