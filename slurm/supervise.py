"""One attempt as its worker sees it: start the child, attend to it and to the nodes that help, end it in time."""

import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from slurm import profiles, queue, submissions
from slurm.allocation import Allocation
from slurm.attempt import Child, Task
from slurm.board import Attempt, Board
from slurm.nodes import Leader
from slurm.window import Window
from toolkit.failures import Failure
from toolkit.manifest import claims
from toolkit.manifest.files import discard
from toolkit.manifest.log import Writer
from toolkit.stage import Group

LOOK_SECONDS = 5.0  # how often a busy worker looks whether its cell was cancelled
PEER_SECONDS = 5.0  # that nodes are given to say why they failed: the first word is seldom the cause
# Why a worker stops before there is nothing left. `leave`: its node is suspect.
Stop = Literal["", "requeue", "end", "cancelled", "leave", "time", "idle"]


@dataclass(kw_only=True)
class Worker:
    """A worker at work: what it was given, what it knows, and what its signal handlers leave word in (`stop`)."""

    root: Path
    study: str
    launch: int
    board: Board
    writer: Writer
    info: dict[str, Any]
    given: Allocation
    fits: dict[str, profiles.Fit]
    leader: Leader | None = None
    stop: Stop = ""
    child: Child | None = None
    warm: set[str] = field(default_factory=set)
    beat: float = field(default_factory=time.monotonic)
    window: Window | None = None  # with a disk budget
    submission: int = 0  # when it was written that was read last
    busy: bool = False  # it has run something in this allocation
    suspect: str = ""  # the node of a device that failed

    def stopping(self) -> bool:
        """Whether it is to end."""
        return bool(self.stop)

    def say(self, event: dict[str, Any], *, sync: bool = True) -> None:
        """Append an event to its log."""
        self.writer.append({**event, "launch": self.launch}, sync=sync)
        self.beat = time.monotonic()


def node_of(worker: Worker) -> str:
    """The node that it runs on, as Slurm calls it, or this host."""
    return str(worker.info.get("slurm", {}).get("node") or worker.info["host"])


def look_around(worker: Worker) -> None:
    """Take in what others wrote and what a person wants cancelled; say now and then that this worker lives."""
    try:
        worker.board.refresh()
        changed = submissions.changed(worker.root, worker.study, worker.launch)
        if changed != worker.submission:
            content = submissions.read(worker.root, worker.study, worker.launch)
            worker.submission = changed
            worker.board.cancel(content.get("cancelled", ()))
            if content["state"] == "cancelled":
                worker.stop = worker.stop or "cancelled"
        if time.monotonic() - worker.beat > queue.BEAT_SECONDS:
            worker.say({"event": "alive"}, sync=False)
    except OSError as error:  # a full or stalling file system must not cost the stage that runs
        print(f"this worker cannot look around: {error}", flush=True)


def run_in_child(worker: Worker, attempt: Attempt) -> dict[str, Any]:
    """Fork, run, commit; returns the event that ends the attempt."""
    if worker.stop:  # while it imported
        return {"event": "interrupted"}
    task = _task(worker, attempt)
    (task.work / "state").mkdir(parents=True, exist_ok=True)
    _discard_stale(worker, task.work)
    task.out.mkdir()
    if task.group.nodes > 1 and worker.leader is not None:
        words = {
            "do": "run", "fingerprint": task.cell.fingerprint, "number": task.number,
            "halvings": attempt.halvings, "address": task.group.address, "port": task.group.port,
        }  # fmt: skip
        worker.leader.tell(words)
    started = time.monotonic()
    worker.child = Child(task)
    try:
        if worker.stop:  # the signal came before there was a child to tell
            worker.child.signal(signal.SIGUSR2)
        cause = _attend(worker, task)
    except BaseException:
        worker.child.signal(signal.SIGKILL)
        worker.child.report()
        raise
    finally:
        child, worker.child = worker.child, None
    report = child.report()
    report = cause if cause is not None and report["event"] != "committed" else report
    if report["event"] == "committed":
        report["seconds_before"] = task.spent()
        discard(task.work)
    else:
        if task.out.exists():
            discard(task.out)  # before the event is logged: on a full disk this is the room that it needs
        if report.get("reason") != Failure.DISK_FULL:
            task.spend(time.monotonic() - started)
    return report


def _task(worker: Worker, attempt: Attempt) -> Task:
    cell, group = attempt.cell, Group()
    fit = worker.fits[cell.fingerprint]
    if fit.shape.nodes > 1:
        assert worker.leader is not None
        address, port = worker.leader.meeting()
        group = Group(nodes=worker.given.nodes, address=address, port=port)
    return Task(
        root=worker.root, study=worker.study, cell=cell, number=attempt.number, group=group,
        resources=fit.resources(attempt.halvings), stopping=worker.stopping,
    )  # fmt: skip


def _attend(worker: Worker, task: Task) -> dict[str, Any] | None:
    """Wait for the child's end; what ended it, if that was not the child itself.

    A child that has been told to stop and does not is killed shortly before Slurm would kill all of this.
    """
    assert worker.child is not None
    told = ended = None
    cause: dict[str, Any] | None = None
    many = task.group.nodes > 1 and worker.leader is not None
    while not worker.child.wait(0.5 if many or told else LOOK_SECONDS):
        now = time.monotonic()
        look_around(worker)
        if not told and (worker.stop or task.cell.fingerprint in worker.board.cancelled):
            worker.child.signal(signal.SIGUSR2)
            told = now
        if many and worker.leader is not None and cause is None:
            cause = next((said for said in worker.leader.hear() if said["event"] == "failed"), None)
            ended = now if cause else None
        if told and now - told > _patience(worker):
            cause = cause or _overdue(worker)
            worker.child.signal(signal.SIGKILL)
        elif ended and now - ended > PEER_SECONDS:
            worker.child.signal(signal.SIGKILL)
    if many and worker.leader is not None:
        cause = _dismiss(worker.leader, task, cause)
    return cause


def _dismiss(leader: Leader, task: Task, cause: dict[str, Any] | None) -> dict[str, Any] | None:
    """This node's child has ended: end those of the others, and hear what they say of it."""
    leader.tell({"do": "stop"})
    waiting, deadline = len(leader.links), time.monotonic() + PEER_SECONDS
    while waiting > 0 and time.monotonic() < deadline:
        for said in leader.hear():
            waiting -= said["event"] == "stopped"
            if said["event"] == "failed" and said["reason"] not in (Failure.BUG, Failure.LOST):
                cause = cause or said
        time.sleep(0.02)
    return cause


def _patience(worker: Worker) -> float:
    return max(5.0, worker.given.profile.grace_seconds - 15.0)


def _overdue(worker: Worker) -> dict[str, Any]:
    if worker.stop != "requeue":
        return {"event": "interrupted", "message": "it did not save in time, and was killed"}
    near = worker.given.remaining() < 60
    reason = Failure.TIMEOUT if near else Failure.PREEMPTED
    return {"event": "failed", "reason": reason, "message": "the stage did not save in time, and was killed"}


def _discard_stale(worker: Worker, folder: Path) -> None:
    """Remove what dead attempts left. One that may live on another host keeps its folder: emptied under its hands, it
    could publish the half that it writes from now on."""
    for stale in [*folder.glob("out.*"), *folder.glob("help.*")]:
        number = int(stale.name.split(".")[1])
        info = claims.read_claim(worker.root, folder.name, number)
        if worker.board.rules.alive(info, claims.made(worker.root, folder.name, number)) is False:
            discard(stale)
