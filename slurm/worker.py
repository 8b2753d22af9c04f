"""A worker pulls cells of one launch until nothing is left that it could run: claim, fork a child that runs and commits
the stage, log. The parent imports the heavy libraries once and starts no thread.

`Work` is what submitit runs, on this machine or in a Slurm job. Signals: USR2 (the time limit is near, or the place is
wanted) lets the stage save, and the job is requeued through submitit; TERM lets it save, and that is all. Neither does
anything in its handler but leave word.
"""

import importlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jobs
from slurm import profiles, queue, submissions
from slurm.allocation import Allocation, allocation
from slurm.attempt import Child, Task, failure
from slurm.board import Attempt, Board, Rules
from slurm.estimates import Estimates
from slurm.nodes import Leader
from slurm.peer import help_out
from slurm.window import Window
from toolkit.failures import Failure
from toolkit.fingerprint import SHORT
from toolkit.manifest import claims
from toolkit.manifest.files import discard
from toolkit.manifest.log import Writer
from toolkit.stage import Group, read_progress
from toolkit.study import Cell

POLL_SECONDS = 0.2  # how often an idle worker looks whether somebody finished what it waits for
LOOK_SECONDS = 5.0  # how often a busy one looks whether its cell was cancelled
STUCK_SECONDS = 3.0  # that nothing fits the disk budget before a worker says so: another may just be dropping
HOLD_SECONDS = 120.0  # after TERM, for Slurm to end the job
REQUEUES, REQUEUE_SECONDS = 6, 5.0  # tries to requeue, and between them
MOST_PAUSES = 6  # times idle_minutes after which a worker that found nothing comes back, at most
PEER_SECONDS = 5.0  # that nodes are given to say why they failed: the first word is seldom the cause
# Forked children inherit these. HF libraries must not reach for a network that compute nodes do not have.
ENVIRONMENT = {
    "OMP_WAIT_POLICY": "passive",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # the parent may ask whether there is a GPU, but must not start CUDA
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "DO_NOT_TRACK": "1",
}
# Why a worker stops before there is nothing left. `leave`: its node is suspect.
Stop = Literal["", "requeue", "end", "cancelled", "leave", "time", "idle"]


class Work:
    """What submitit pickles: `Work()(root, study, launch, shape, array)`; requeued, it is called again with the
    same."""

    def __call__(self, root: Path, study: str, launch: int, shape: str, array: str = "") -> int:
        return work(root, study, launch, shape, array)

    def checkpoint(self, *args: Any) -> Any:
        """Called by submitit before it requeues."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *args)


@dataclass(kw_only=True)
class _Worker:
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
        return bool(self.stop)

    def say(self, event: dict[str, Any], *, sync: bool = True) -> None:
        self.writer.append({**event, "launch": self.launch}, sync=sync)
        self.beat = time.monotonic()


def work(root: Path, study: str, launch: int, shape: str, array: str = "") -> int:
    """Run cells of a launch until none is left that this worker could run; returns how many it committed.

    shape: of the launch's profile. array: the name of the Slurm array that it was submitted with, which must still be
    one that the launch counts on.

    Raises:
        ValueError: this node imports Tidemark from another place than the launch did.
    """
    submission = submissions.read(root, study, launch)
    submissions.check_home(submission)
    if array and array not in submissions.arrays(submission):
        return 0  # its sbatch came through after the launch had been given up
    given = allocation(profiles.read(submission["profile"]), shape)
    if given.node > 0:
        with _environment(given):
            return help_out(root, study, launch, given)
    previous = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)}
    with _environment(given):
        worker = _worker(root, study, launch, given, submission)
        _hear_signals(worker)
        worker.say({"event": "worker-started", "who": worker.info, "shape": given.name, "node": _node(worker)})
        try:
            if given.nodes > 1 and given.slurm is not None:
                file = submissions.meeting_file(root, study, launch, given.name, given.slurm)
                worker.leader = Leader(file, given.nodes, worker.stopping)
            committed = _pull(worker)
        except BaseException:
            worker.say({"event": "worker-ended"})
            raise
        finally:
            if worker.leader:
                worker.leader.close()
    worker.say({"event": "worker-ended", "stop": worker.stop, "committed": committed})
    _leave(worker, submission, array, previous)
    return committed


def _worker(root: Path, study: str, launch: int, given: Allocation, submission: dict[str, Any]) -> _Worker:
    cells = submissions.cells(root, study, launch)
    writer = Writer(root, study)
    fits = profiles.fits(given.profile, cells)
    estimates = Estimates(submission.get("seconds"))
    rules = Rules(
        mine={print_ for print_, fit in fits.items() if _takes(given, fit)},
        home={print_ for print_, fit in fits.items() if fit.name == given.name},
        has_time=lambda cell: _has_time(root, given, estimates, cell),
        learn=estimates.learn,
        alive=queue.Queue(root, given.profile.poll_seconds).alive,
        retry=submission["options"].get("retry", {}),
        wanted=submission["options"].get("wanted", ()),
    )
    info = {**claims.identity(), "worker": writer.name, "study": study, "launch": launch}
    if given.slurm is not None:
        info["slurm"] = given.slurm
    board = Board(root, study, launch, cells, rules, writer.append, time.monotonic)
    window, budget = None, given.profile.disk_budget
    if budget is not None:
        window = Window(root, study, launch, board, budget, info)
        board.room = window.room
    return _Worker(
        root=root, study=study, launch=launch, board=board, writer=writer, info=info, given=given, fits=fits,
        window=window,
    )  # fmt: skip


def _takes(given: Allocation, fit: profiles.Fit) -> bool:
    return given.shape.covers(fit.shape) if given.shape else fit.name == given.name


@contextmanager
def _environment(given: Allocation) -> Iterator[None]:
    """Variables for this worker and its children, and folders of its own for caches, which go with it."""
    os.environ.update(ENVIRONMENT)
    made: dict[str, str] = {}
    if given.slurm is not None:
        made = profiles.scratch_variables(given.profile, f"{given.slurm['job']}-{given.slurm['restarts']}")
    for folder in made.values():
        Path(folder).mkdir(parents=True, exist_ok=True)
    os.environ.update(made)
    try:
        yield
    finally:
        for folder in made.values():
            shutil.rmtree(folder, ignore_errors=True)


def _hear_signals(worker: _Worker) -> None:
    def hear(number: int, _frame: Any) -> None:
        worker.stop = worker.stop or ("requeue" if number == signal.SIGUSR2 else "end")
        if worker.child is not None:
            worker.child.signal(signal.SIGUSR2)

    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, hear)


def _node(worker: _Worker) -> str:
    return str(worker.info.get("slurm", {}).get("node") or worker.info["host"])


def _has_time(root: Path, given: Allocation, estimates: Estimates, cell: Cell) -> bool:
    """Whether a cell may be started: with enough time, or with as much as any allocation of this shape has."""
    if given.shape is None or given.fresh():
        return True
    known, told = estimates.of(cell), read_progress(root / "work" / cell.fingerprint[:SHORT] / "state")
    if known is None or known.like != "size":
        return given.remaining() > 0
    done = told["step"] / told["total"] if told.get("total") else 0.0
    return known.seconds * (1 - done) <= given.remaining()


def _pull(worker: _Worker) -> int:
    committed, last, busy = 0, None, time.monotonic()
    _drop_what_served(worker)
    while not worker.stop:
        _look(worker)
        if worker.stop:
            break
        if worker.window is not None:
            worker.window.impossible = ""
        attempt = worker.board.take_next(last, worker.info)
        if attempt is not None:
            worker.busy = True
            committed += _run(worker, attempt)
            _drop_what_served(worker)
            last, busy = attempt.cell, time.monotonic()
        elif not _wait(worker, time.monotonic() - busy):
            break
    return committed


def _drop_what_served(worker: _Worker) -> None:
    if worker.window is not None:
        worker.board.refresh()
        worker.window.sweep()


def _wait(worker: _Worker, waited: float) -> bool:
    """Nothing can be taken now: wait a little, or say that this is the end. A place on a cluster is not held for
    long."""
    outlook, profile = worker.board.outlook(), worker.given.profile
    if not outlook:
        return False
    if worker.window is not None and worker.window.impossible and waited > STUCK_SECONDS:
        raise ValueError(worker.window.impossible)
    if worker.given.slurm is not None:
        idle = profile.idle_minutes * 60
        if worker.given.slurm["restarts"] and not worker.busy:
            idle = min(idle, profile.poll_seconds)  # it has come back to look, and does not hold its place for long
        if outlook == "others" and waited > min(idle, profile.poll_seconds):
            return False  # whoever is at it comes back by itself if it is preempted; else the next launch takes over
        if outlook == "time" or waited > idle:
            worker.stop = "time" if outlook == "time" else "idle"
            return False
    time.sleep(POLL_SECONDS if worker.given.slurm is None else min(2.0, POLL_SECONDS + waited / 20))
    return True


def _look(worker: _Worker) -> None:
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


def _run(worker: _Worker, attempt: Attempt) -> bool:
    """One attempt, from its claim to the event that ends it; whether it was committed."""
    cell = attempt.cell
    base = {"fingerprint": cell.fingerprint, "cell": cell.name, "attempt": attempt.number}
    worker.say({**base, "event": "started", "node": _node(worker)})
    started = time.monotonic()
    try:
        _warm_up(worker, cell)
        started = time.monotonic()
        report = _in_child(worker, attempt)
    except Exception as error:  # a library that does not import, no room for a folder, no memory for a process
        report = failure(error)
    seconds = round(time.monotonic() - started, 3)
    worker.say({**base, "seconds": seconds, "node": _node(worker), **report})
    if report.get("reason") == Failure.GPU_FAULT and worker.given.slurm is not None:
        worker.stop, worker.suspect = worker.stop or "leave", report.get("node", _node(worker))
    if worker.leader is not None and len(worker.leader.links) < worker.given.nodes - 1:
        worker.stop = worker.stop or "requeue"  # a node is gone, or its task
    return bool(report["event"] == "committed")


def _warm_up(worker: _Worker, cell: Cell) -> None:
    """Import in the parent, once, what the stage imports: the next child starts with it."""
    for name in getattr(jobs.load(cell.job), "WARM", ()):
        if name not in worker.warm:
            importlib.import_module(name)
            worker.warm.add(name)


def _in_child(worker: _Worker, attempt: Attempt) -> dict[str, Any]:
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


def _task(worker: _Worker, attempt: Attempt) -> Task:
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


def _attend(worker: _Worker, task: Task) -> dict[str, Any] | None:
    """Wait for the child's end; what ended it, if that was not the child itself.

    A child that has been told to stop and does not is killed shortly before Slurm would kill all of this.
    """
    assert worker.child is not None
    told = ended = None
    cause: dict[str, Any] | None = None
    many = task.group.nodes > 1 and worker.leader is not None
    while not worker.child.wait(0.5 if many or told else LOOK_SECONDS):
        now = time.monotonic()
        _look(worker)
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


def _patience(worker: _Worker) -> float:
    return max(5.0, worker.given.profile.grace_seconds - 15.0)


def _overdue(worker: _Worker) -> dict[str, Any]:
    if worker.stop != "requeue":
        return {"event": "interrupted", "message": "it did not save in time, and was killed"}
    near = worker.given.remaining() < 60
    reason = Failure.TIMEOUT if near else Failure.PREEMPTED
    return {"event": "failed", "reason": reason, "message": "the stage did not save in time, and was killed"}


def _discard_stale(worker: _Worker, folder: Path) -> None:
    """Remove what dead attempts left. One that may live on another host keeps its folder: emptied under its hands, it
    could publish the half that it writes from now on."""
    for stale in [*folder.glob("out.*"), *folder.glob("help.*")]:
        number = int(stale.name.split(".")[1])
        info = claims.read_claim(worker.root, folder.name, number)
        if worker.board.rules.alive(info, claims.made(worker.root, folder.name, number)) is False:
            discard(stale)


def _leave(worker: _Worker, submission: dict[str, Any], array: str, previous: dict[signal.Signals, Any]) -> None:
    """Give the place back; a job with work ahead of it goes back into the queue, through submitit."""
    if worker.given.slurm is None:
        return
    if worker.stop == "end":
        time.sleep(HOLD_SECONDS)  # where preemption says TERM, a job that ends by itself would not be requeued
    if worker.stop not in ("requeue", "time", "idle", "leave"):
        return
    print(f"this worker goes back into the queue ({worker.stop})", flush=True)
    for left in range(REQUEUES - 1, -1, -1):
        try:
            previous[signal.SIGUSR2](signal.SIGUSR2, None)
        except SystemExit:
            visits = min(MOST_PAUSES, 1 + worker.given.slurm["restarts"])  # the longer it waits the rarer it looks
            later = worker.given.profile.idle_minutes * 60 * visits if worker.stop == "idle" else 0
            bad = [*submissions.arrays(submission)[array]["exclude"], worker.suspect] if worker.stop == "leave" else []
            queue.adjust(worker.given.slurm["job"], later, bad)
            raise
        except subprocess.SubprocessError as error:  # the controller is away
            print(f"not requeued: {error}; tries left: {left}", flush=True)
            time.sleep(REQUEUE_SECONDS)
