"""One attempt at a cell, in a child process: it owns threads and devices, and its death costs one attempt.

The child runs the stage, commits what it made and says through a pipe how it went. On the nodes beside the first it
runs the same stage for its ranks, and commits nothing.
"""

import ctypes
import json
import os
import re
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jobs
from toolkit import provenance
from toolkit.expand import choose
from toolkit.failures import Failure, UpstreamDamaged, classify
from toolkit.fingerprint import SHORT
from toolkit.manifest import record
from toolkit.manifest.files import write_atomic
from toolkit.spec import build
from toolkit.stage import Artifact, Context, Group, Interrupted, Resources, gather
from toolkit.study import Cell

PR_SET_PDEATHSIG = 1
CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a child is to do. `stopping` is asked once more in the child, for a signal that came before its handler."""

    root: Path
    study: str
    cell: Cell
    number: int
    resources: Resources
    group: Group
    stopping: Callable[[], bool]

    @property
    def work(self) -> Path:
        return self.root / "work" / self.cell.fingerprint[:SHORT]

    @property
    def out(self) -> Path:
        """The folder that this attempt fills; on a node beside the first, one that nobody keeps."""
        return self.work / (f"help.{self.number}.{self.group.node}" if self.group.node else f"out.{self.number}")

    @property
    def log(self) -> Path:
        prefix = f"node{self.group.node}-" if self.group.node else ""
        return self.work / f"{prefix}log.{self.number}.txt"

    def spent(self) -> float:
        """Seconds of the attempts before this one that their workers could tell of."""
        try:
            return float((self.work / "state" / "spent.txt").read_text())
        except (FileNotFoundError, ValueError):
            return 0.0

    def spend(self, seconds: float) -> None:
        """Add what this attempt took, where it did not commit."""
        write_atomic(self.work / "state" / "spent.txt", f"{self.spent() + seconds:.3f}".encode(), sync=False)


class Child:
    """A forked child that runs a task."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.kills = oom_kills()
        reading, writing = os.pipe()
        parent = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reading)
            _child(task, parent, writing)  # never returns
        os.close(writing)
        self.reading = reading
        self.pidfd = os.pidfd_open(self.pid)

    def wait(self, seconds: float) -> bool:
        """Wait for the child's end, and whether it has come."""
        return bool(select.select([self.pidfd], [], [], seconds)[0])

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; a child that has just ended needs none."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def report(self) -> dict[str, Any]:
        """The event that ends the attempt, once the child has ended."""
        _, status = os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        os.set_blocking(self.reading, False)  # a rank that the child left behind may hold the pipe open
        with open(self.reading, "rb") as pipe:
            said = pipe.read()
        if not said:
            return self._silent_death(os.waitstatus_to_exitcode(status))
        report: dict[str, Any] = json.loads(said)
        if report.get("reason") == Failure.LOST and oom_kills() > self.kills:
            report["reason"] = Failure.OOM  # it was a process of the stage that the kernel chose
        return report

    def _silent_death(self, code: int) -> dict[str, Any]:
        if -code in CRASHES:
            reason, message = Failure.BUG, f"crashed with {signal.Signals(-code).name}"
        elif code == -signal.SIGKILL and oom_kills() > self.kills:
            reason, message = Failure.OOM, "killed by the kernel: the job's memory limit was reached"
        elif code < 0:
            reason = Failure.LOST
            message = f"killed by {signal.Signals(-code).name} (by a person, or for lack of memory)"
        else:
            reason, message = Failure.LOST, f"exited with status {code} and no report"
        return {"event": "failed", "reason": reason, "message": message}


def oom_kills() -> int:
    """How often the kernel has killed for memory in the cgroups of this process; 0 where that cannot be seen."""
    total = 0
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            file = Path(f"/sys/fs/cgroup/memory{path}/memory.oom_control")
        elif not controllers:
            file = Path(f"/sys/fs/cgroup{path}/memory.events")
        else:
            continue
        with suppress(OSError):  # another namespace's path, or no cgroups are mounted
            found = re.search(r"^oom_kill (\d+)$", file.read_text(), re.MULTILINE)
            total += int(found[1]) if found else 0
    return total


def _child(task: Task, parent: int, writing: int) -> None:
    """In the forked child: run the stage, commit, report through the pipe, exit without the parent's clean-up."""
    code = 1
    try:
        _die_with(parent)
        task.log.parent.mkdir(exist_ok=True)
        descriptor = os.open(task.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        report = _run(task)
        code = 0
    except BaseException as error:
        report = failure(error)
        with suppress(OSError):  # a full disk has no room for the log either; the reason goes through the pipe
            traceback.print_exc()
    try:
        os.write(writing, json.dumps(report).encode())  # short enough for a pipe to take at once (64 KiB)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:  # whatever happens: a child that went on here would be a second worker
        os._exit(code)


def _die_with(parent: int) -> None:
    """A child outlives its worker for no longer than the kernel needs to tell it: nobody would wait for it."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _run(task: Task) -> dict[str, Any]:
    cell = task.cell
    job = jobs.load(cell.job)
    chosen = choose(job, cell.spec)
    ctx = Context(state=task.work / "state", resources=task.resources, group=task.group)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGUSR2, lambda _number, _frame: setattr(ctx, "stop_requested", True))
    if task.stopping():  # the signal came after the fork and before this handler
        ctx.stop_requested = True
    inputs = {name: _artifact(task.root, upstream) for name, upstream in cell.inputs.items()}
    started = time.time()
    try:
        metrics = job.run(build(chosen.Spec, cell.spec), gather(chosen.Inputs, inputs), task.out, ctx)
    except Interrupted:
        return {"event": "interrupted"}
    if task.group.node:
        return {"event": "helped"}
    made = {
        "spec": cell.spec,
        "inputs": {name: upstream.fingerprint for name, upstream in cell.inputs.items()},
        "metrics": metrics or {},
        "provenance": {
            "version": cell.version,
            "study": task.study,
            "stage": cell.stage,
            "coords": cell.coords,
            "identity": provenance.identity(),
            "machine": provenance.machine(),
            "attempt": task.number,
            "started": round(started, 3),
            "seconds": round(time.time() - started, 3),
            "seconds_before": task.spent(),
        },
    }
    sys.stdout.flush()
    os.link(task.log, task.out / record.LOG)
    record.commit(
        task.root, job=cell.job, label=cell.label, fingerprint=cell.fingerprint, out=task.out, record=made
    )  # fmt: skip
    return {"event": "committed"}


def _artifact(root: Path, cell: Cell) -> Artifact:
    """An input, once all files that its record names can be seen from this node."""
    made = record.find(root, cell.job, cell.label, cell.fingerprint)
    folder = record.artifact_folder(root, cell.job, cell.label, cell.fingerprint)
    if made is None:
        raise UpstreamDamaged(
            f"the input {cell.name} was committed as {folder}, which is gone; launch again to make it anew"
        )
    if record.is_dropped(folder):
        raise UpstreamDamaged(
            f"the input {cell.name} was dropped from {folder} meanwhile; launch again to make it anew"
        )
    record.wait_visible(folder, made)
    return Artifact(path=record.payload(folder, made), fingerprint=cell.fingerprint, record=made)


def failure(error: BaseException) -> dict[str, Any]:
    """The event of an attempt that ended in an exception."""
    return {"event": "failed", "reason": classify(error), "message": _sentence(error)}


def _sentence(error: BaseException) -> str:
    """The message of an error, or its type where it has none; long ones are cut, the log has all of it."""
    text = str(error).strip() or type(error).__name__
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    return (kind + text)[:2000]
