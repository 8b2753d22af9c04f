"""A study on a real Slurm under every kind of fault: launching again ends in the table of a run that nobody disturbed.

    python -m pytest tests/slurm/test_faults.py --faults 200 [--fault-seed 7]        (`make faults`)

The study is the quickstart in a tiny form, with every stage of it; training runs on two ranks in a partition that others
may take. A seed fixes which faults are drawn, when and for whom; what they meet depends on the machine.
"""

import collections
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.cluster import Cluster
from tests.cluster.fixtures import calm, cluster  # noqa: F401
from tests.slurm.lab import QUIET, children, until
from tests.slurm.tiny import CELLS, SETS, STUDY
from toolkit.manifest.log import Reader

TIDEMARK = str(Path(sys.executable).with_name("tidemark"))
KINDS = (
    "worker", "child", "rank", "scancel", "node", "controller", "slurmdbd", "preemption", "time limit", "scratch", "launch",
)  # fmt: skip
A_RUN = 14  # faults of one run
MEAN_SECONDS = 2.0  # between two faults
LIMIT = 900  # seconds that a run may take


@dataclass(kw_only=True)
class Run:
    """One root, from nothing to a finished study."""

    root: Path
    cluster: Cluster
    rng: random.Random
    faults: list[tuple[str, str]] = field(default_factory=list)
    mending: list[tuple[float, Any]] = field(default_factory=list)  # when, and what ends a fault
    launched: "subprocess.Popen[bytes] | None" = None

    @property
    def scratch(self) -> Path:
        return self.cluster.place.folder / "scratch"

    def profile(self) -> Path:
        shape = {"cpus": 1, "memory": 1.5, "hours": 0.1}
        path = self.root.parent / "faults.yaml"
        words = {
            "poll_seconds": 2, "grace_seconds": 20, "idle_minutes": 0.2, "repeat_failures": 100,
            "setup": ["export OMP_NUM_THREADS=1 TIDEMARK_SAVE_SECONDS=0"], "scratch": str(self.scratch),
            "shapes": {
                "cpu": {**shape, "partition": "main", "workers": 2},
                "gpu": {**shape, "partition": "low", "gpus": 1, "memory": 2.5, "workers": 2},
            },
            "jobs": {"default": {"shape": "cpu", "threads": 1}, "train": {"shape": "gpu", "threads": 1, "processes": 2}},
        }  # fmt: skip
        path.write_text(yaml.safe_dump(words))
        return path

    # -- the command line

    def words(self, command: str, *more: object) -> dict[str, Any]:
        study = [] if command == "verify" else [STUDY, *SETS]
        env = {**os.environ, **QUIET, **{key: self.cluster.env[key] for key in ("PATH", "SLURM_CONF")}}
        return {"args": [TIDEMARK, command, *study, "--root", str(self.root), *map(str, more)], "env": env}

    def ask(self, command: str, *more: object, codes: tuple[int, ...] = (0,)) -> bytes:
        done = subprocess.run(**self.words(command, *more), capture_output=True, timeout=180, check=False)
        assert done.returncode in codes, (done.stdout + done.stderr).decode()
        return done.stdout

    def launch(self, kill: float | None = None) -> None:
        """Launch, to the end or for so many seconds; refused or unanswered launches are tried again later."""
        self.launched = subprocess.Popen(
            **self.words("launch", "--cluster", self.profile()),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            self.launched.wait(kill if kill is not None else 180)
        except subprocess.TimeoutExpired:
            os.killpg(self.launched.pid, signal.SIGKILL)
            self.launched.wait()

    def finished(self) -> bool:
        made = [path for path in self.root.glob("artifacts/*/*") if not path.name.startswith(".")]
        return len(made) == CELLS

    # -- who is there

    def workers(self) -> list[int]:
        """Workers' processes as this machine numbers them, whatever node they are on."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    words = (entry / "cmdline").read_bytes()
                except OSError:
                    continue
                if b"submitit.core._submit" in words and str(self.root).encode() in words and b"srun" not in words[:20]:
                    found.append(int(entry.name))
        return sorted(found)

    def victims(self, kind: str) -> list[int]:
        workers = self.workers()
        below = sorted(child for pid in workers for child in children(pid))
        return {"worker": workers, "child": below, "rank": sorted(r for pid in below for r in children(pid))}[kind]

    def jobs(self, *states: str) -> list[str]:
        """Numbers of this run's jobs that are in one of the states; none while the controller is away."""
        lines = self.cluster.run("squeue", "-h", "-r", "-t", ",".join(states), "-o", "%i|%j", check=False).splitlines()
        return sorted(line.split("|")[0] for line in lines if "|tidemark-" in line)

    # -- faults

    def later(self, seconds: float, mend: Any) -> None:
        self.mending.append((time.monotonic() + seconds, mend))

    def mend(self, *, all_: bool = False) -> None:
        """End the faults whose time has come."""
        for due, mend in sorted(self.mending, key=lambda entry: entry[0]):
            if all_ or due <= time.monotonic():
                self.mending.remove((due, mend))
                mend()

    def fault(self, kind: str) -> bool:
        """Do it; False if there is nobody to do it to just now."""
        if kind in ("worker", "child", "rank"):
            return self.kill(kind)
        if kind in ("scancel", "time limit"):
            return self.end_job(kind)
        if kind == "launch":
            self.launch(kill=self.rng.uniform(0.3, 1.5))
            return True
        if self.mending:
            return False  # one of those that last at a time
        return self.lasting(kind, self.rng.choice(self.cluster.nodes))

    def kill(self, kind: str) -> bool:
        pids = self.victims(kind)
        try:
            os.kill(self.rng.choice(pids), signal.SIGKILL)
            return True
        except (IndexError, ProcessLookupError):  # there is none, or it has just ended
            return False

    def end_job(self, kind: str) -> bool:
        jobs = self.jobs("R")
        if jobs:
            job = self.rng.choice(jobs)
            words = ["scancel", job] if kind == "scancel" else ["scontrol", "update", f"jobid={job}", "timelimit=1"]
            self.cluster.run(*words, check=False)
        return bool(jobs)

    def lasting(self, kind: str, node: str) -> bool:
        """A fault that is mended after a while."""
        cluster, rng = self.cluster, self.rng
        if kind == "node":
            cluster.kill_node(node)
            self.later(rng.uniform(1, 25), lambda: self.boot(node))
        elif kind == "controller":
            cluster.stop_controller(rng.choice((signal.SIGTERM, signal.SIGKILL)))
            self.later(rng.uniform(1, 6), cluster.start_controller)
        elif kind == "slurmdbd":
            cluster.stop_slurmdbd()
            self.later(rng.uniform(2, 10), cluster.start_slurmdbd)
        elif kind == "preemption":
            high = cluster.preempt(node)
            self.later(rng.uniform(3, 15), lambda: cluster.run("scancel", high, check=False))
        else:
            assert kind == "scratch"
            fill, clear = "i=0; while touch $0/f$i 2>/dev/null; do i=$((i+1)); done", "rm -f $0/f*"
            cluster.on_node(node, "sh", "-c", fill, str(self.scratch), check=False)
            self.later(
                rng.uniform(2, 10), lambda: cluster.on_node(node, "sh", "-c", clear, str(self.scratch), check=False)
            )
        return True

    def boot(self, node: str) -> None:
        self.cluster.restore_node(node)
        self.mount(node)

    def mount(self, node: str) -> None:
        """A small scratch of the node's own."""
        self.scratch.mkdir(exist_ok=True)
        options = "size=8m,nr_inodes=200"
        self.cluster.on_node(node, "mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.scratch))

    def disturb(self, count: int) -> None:
        """Launch again and again, with `count` faults on the way, until the study is done."""
        began = time.monotonic()
        moment = time.monotonic() + self.rng.expovariate(1 / MEAN_SECONDS)
        asked, kind = 0.0, self.rng.choice(KINDS)
        while not self.finished():
            assert time.monotonic() - began < LIMIT, f"it comes to no end after {self.faults}"
            self.mend()
            if time.monotonic() - asked > 5 and self.cluster.processes.pid("slurmctld"):
                self.resume_nodes()
                self.launch()
                asked = time.monotonic()
            if len(self.faults) < count and time.monotonic() > moment:
                if self.fault(kind):
                    self.faults.append((kind, self.last()))
                    moment = time.monotonic() + self.rng.expovariate(1 / MEAN_SECONDS)
                kind = self.rng.choice(KINDS)
            time.sleep(0.05)
        self.mend(all_=True)

    def resume_nodes(self) -> None:
        """What a person does on a real cluster: a controller that was killed before it saved gives a job's number away
        again, and drains the node that knows it ("Duplicate jobid")."""
        if not self.mending:
            self.cluster.up()

    def last(self) -> str:
        events = sorted(Reader(self.root, "quickstart").new_events(), key=lambda event: event["time"])
        started = [event["cell"].split("[")[0] for event in events if event["event"] == "started"]
        return started[-1] if started else "the start"


@pytest.fixture
def quiet(calm: Cluster) -> Iterator[Cluster]:  # noqa: F811
    """The cluster without other jobs of ours, each node with its own small scratch."""
    yield calm
    for node in calm.nodes:
        calm.on_node(node, "umount", str(calm.place.folder / "scratch"), check=False)


def check(run: Run, expected: bytes) -> None:
    """What must hold once the study is done, whatever happened on the way."""

    def gone() -> bool:
        run.resume_nodes()
        return not run.jobs("PD", "R", "CG", "CF")

    until(gone, 150)  # a job whose launcher died waits a minute for its pickle
    until(lambda: not run.workers(), 30)
    assert run.ask("table", "--format", "csv") == expected
    assert f"{CELLS} artifacts, 0 damaged" in run.ask("verify").decode()
    events = Reader(run.root, "quickstart").new_events()
    committed = collections.Counter(e["fingerprint"] for e in events if e["event"] == "committed")
    assert set(committed.values()) <= {1}, "a cell was executed to its commit twice"
    reasons = {e["reason"] for e in events if e["event"] in ("failed", "lost")}
    assert reasons <= {"LOST", "NODE_FAIL", "PREEMPTED", "TIMEOUT", "OOM", "DISK_FULL"}, reasons


@pytest.mark.timeout(7200)
def test_faults_of_every_kind(
    quiet: Cluster, tmp_path: Path, pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = pytestconfig.getoption("faults", None)
    wanted, seed = asked or 8, pytestconfig.getoption("fault_seed", None) or 1
    reference = Run(root=tmp_path / "undisturbed", cluster=quiet, rng=random.Random(0))
    for node in quiet.nodes:
        reference.mount(node)
    reference.disturb(0)
    expected = reference.ask("table", "--format", "csv")
    assert len(expected.splitlines()) > CELLS and b"never-run" not in expected
    check(reference, expected)
    total: collections.Counter[str] = collections.Counter()
    number = 0
    while total.total() < wanted:
        number += 1
        run = Run(root=tmp_path / f"root-{number}", cluster=quiet, rng=random.Random(f"{seed} {number}"))
        started = time.monotonic()
        try:
            run.disturb(min(A_RUN, wanted - total.total()))
            check(run, expected)
        except BaseException:
            print(f"seed {seed}, run {number}: {run.faults}")
            raise
        total.update(kind for kind, _ in run.faults)
        if asked:
            with capsys.disabled():
                seconds = time.monotonic() - started
                print(
                    f"\nrun {number}: {len(run.faults)} faults in {seconds:.0f} s, {total.total()} in all", flush=True
                )
    if asked:
        with capsys.disabled():
            kinds = ", ".join(f"{count} {kind}" for kind, count in total.most_common())
            print(f"\n{total.total()} faults ({kinds}) over {number} runs, seed {seed}: all tables identical,", end=" ")
            print("no artifact damaged, no cell executed to its commit twice, no job left")
