"""Worker, child or launcher killed at random moments: launching again ends in the table of a run that nobody disturbed.

    python -m pytest tests/slurm/test_kills.py --kills 50 [--kill-seed 7]        (`make kills`)

The study is the quickstart in a tiny form, with every stage of it. Seeds and kills are printed where `--kills` is given.
"""

import collections
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.lab import QUIET, children, processes_of, until
from tests.slurm.tiny import CELLS, SETS, STUDY
from toolkit.manifest.log import Reader

TIDEMARK = str(Path(sys.executable).with_name("tidemark"))
KINDS = ("child", "worker", "launcher")
MEAN_SECONDS = 2.0  # between two kills
RELAUNCHES = 200  # of one root: far more than its kills can need


@dataclass(kw_only=True)
class Run:
    """One root, from nothing to a finished study."""

    root: Path
    launches: list["subprocess.Popen[bytes]"] = field(default_factory=list)
    kills: list[tuple[str, str]] = field(default_factory=list)

    def words(self, command: str, *more: str) -> list[str]:
        study = [] if command == "verify" else [STUDY, *SETS]
        return [TIDEMARK, command, *study, "--root", str(self.root), *more]

    def ask(self, command: str, *more: str) -> bytes:
        done = subprocess.run(
            self.words(command, *more), env={**os.environ, **QUIET}, capture_output=True, check=False
        )  # fmt: skip
        assert done.returncode == 0, (done.stdout + done.stderr).decode()
        return done.stdout

    def table(self) -> bytes:
        return self.ask("table", "--format", "csv")

    def launch(self, workers: int) -> None:
        with open(self.root.parent / f"{self.root.name}-launch.txt", "ab") as log:
            self.launches.append(
                subprocess.Popen(
                    self.words("launch", "--workers", str(workers)), env={**os.environ, **QUIET}, stdout=log, stderr=log,
                    start_new_session=True,
                )
            )  # fmt: skip

    def finished(self) -> bool:
        """The last launch reached the end; its exit status says so."""
        return bool(self.launches) and self.launches[-1].poll() == 0

    def events(self) -> list[dict[str, Any]]:
        return sorted(Reader(self.root, "quickstart").new_events(), key=lambda event: event["time"])

    def launcher(self) -> list[int]:
        return [self.launches[-1].pid] if self.launches and self.launches[-1].poll() is None else []

    def victims(self, kind: str) -> list[int]:
        """Which processes of a kind this run has; all were started by it."""
        if kind == "launcher":
            return self.launcher()
        told = {e["who"]["pid"] for e in self.events() if e["event"] == "worker-started"}
        workers = sorted(told & set(processes_of(self.root)))
        return workers if kind == "worker" else [child for pid in workers for child in children(pid)]

    def kill(self, rng: random.Random) -> None:
        """Wait for a random time, and then until there is a process of a random kind; kill it."""
        kind = rng.choice(KINDS if self.launcher() else KINDS[:2])
        moment = time.monotonic() + rng.expovariate(1 / MEAN_SECONDS)
        while not self.finished() and processes_of(self.root):
            pids = self.victims(kind) if time.monotonic() >= moment else []
            if pids:
                os.kill(rng.choice(pids), signal.SIGKILL)  # it cannot have been collected: only its parent does that
                started = [e["cell"].split("[")[0] for e in self.events() if e["event"] == "started"]
                self.kills.append((kind, started[-1] if started else "the start"))
                return
            time.sleep(0.005)

    def disturb(self, rng: random.Random, kills: int) -> None:
        """Launch whenever nothing runs, and kill `kills` times at most, until the study is done."""
        while not self.finished():
            if not processes_of(self.root):
                assert len(self.launches) < RELAUNCHES, "the study comes to no end"
                self.launch(rng.choice((1, 2)))
            if len(self.kills) < kills:
                self.kill(rng)
            time.sleep(0.02)

    def close(self) -> None:
        for process in self.launches:
            process.kill()
            process.wait()
        for pid in processes_of(self.root):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The table of a run that nobody disturbs, with one worker."""
    run = Run(root=tmp_path_factory.mktemp("undisturbed") / "root")
    try:
        run.launch(1)
        until(run.finished, 240)
        return run.table()
    finally:
        run.close()


def check(run: Run, expected: bytes) -> None:
    """What must hold once the study is done, whatever happened on the way."""
    until(lambda: not processes_of(run.root), 70)  # a worker whose launcher died as it started gives up after a minute
    assert run.table() == expected
    assert f"{CELLS} artifacts, 0 damaged" in run.ask("verify").decode()
    assert len(list(run.root.glob("artifacts/*/*"))) == CELLS, "nothing else lies among the artifacts"
    events = run.events()
    committed = collections.Counter(e["fingerprint"] for e in events if e["event"] == "committed")
    assert set(committed.values()) == {1}, "a cell was committed twice"
    assert not any(e["event"] == "failed" and e["reason"] != "LOST" for e in events)


@pytest.mark.timeout(3600)
def test_killed_at_random_moments(
    undisturbed: bytes, tmp_path: Path, pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = pytestconfig.getoption("kills", None)
    wanted, seed = asked or 8, pytestconfig.getoption("kill_seed", None) or 1
    total: collections.Counter[str] = collections.Counter()
    number = 0
    assert len(undisturbed.splitlines()) > CELLS and b"never-run" not in undisturbed
    while total.total() < wanted:
        number += 1
        run = Run(root=tmp_path / f"root-{number}")
        started = time.monotonic()
        try:
            run.disturb(random.Random(f"{seed} {number}"), wanted - total.total())
            check(run, undisturbed)
        finally:
            run.close()
        total.update(kind for kind, _ in run.kills)
        if asked:
            with capsys.disabled():
                where = ", ".join(f"{kind} in {stage}" for kind, stage in run.kills)
                print(
                    f"\nroot {number}, seed '{seed} {number}': {len(run.kills)} kills ({where}), {len(run.launches)}"
                    f" launches, {time.monotonic() - started:.0f} s: table identical, verify clean"
                )
    if asked:
        with capsys.disabled():
            counts = ", ".join(f"{total[kind]} {kind}" for kind in KINDS)
            print(f"{total.total()} kills ({counts}) over {number} roots: all tables identical, no artifact damaged")
