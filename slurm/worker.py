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
from pathlib import Path
from typing import Any

import jobs
from slurm import profiles, queue, submissions
from slurm.allocation import Allocation, allocation
from slurm.attempt import failure
from slurm.board import Attempt, Board, Rules
from slurm.estimates import Estimates
from slurm.nodes import Leader
from slurm.peer import help_out
from slurm.supervise import Worker, look_around, node_of, run_in_child
from slurm.window import Window
from toolkit.failures import Failure
from toolkit.fingerprint import SHORT
from toolkit.manifest import claims
from toolkit.manifest.log import Writer
from toolkit.stage import read_progress
from toolkit.study import Cell

POLL_SECONDS = 0.2  # how often an idle worker looks whether somebody finished what it waits for
STUCK_SECONDS = 3.0  # that nothing fits the disk budget before a worker says so: another may just be dropping
HOLD_SECONDS = 120.0  # after TERM, for Slurm to end the job
REQUEUES, REQUEUE_SECONDS = 6, 5.0  # tries to requeue, and between them
MOST_PAUSES = 6  # times idle_minutes after which a worker that found nothing comes back, at most
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


class Work:
    """What submitit pickles: `Work()(root, study, launch, shape, array)`; requeued, it is called again with the
    same."""

    def __call__(self, root: Path, study: str, launch: int, shape: str, array: str = "") -> int:
        return work(root, study, launch, shape, array)

    def checkpoint(self, *args: Any) -> Any:
        """Called by submitit before it requeues."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *args)


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
        worker.say({"event": "worker-started", "who": worker.info, "shape": given.name, "node": node_of(worker)})
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


def _worker(root: Path, study: str, launch: int, given: Allocation, submission: dict[str, Any]) -> Worker:
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
    return Worker(
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


def _hear_signals(worker: Worker) -> None:
    def hear(number: int, _frame: Any) -> None:
        worker.stop = worker.stop or ("requeue" if number == signal.SIGUSR2 else "end")
        if worker.child is not None:
            worker.child.signal(signal.SIGUSR2)

    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, hear)


def _has_time(root: Path, given: Allocation, estimates: Estimates, cell: Cell) -> bool:
    """Whether a cell may be started: with enough time, or with as much as any allocation of this shape has."""
    if given.shape is None or given.fresh():
        return True
    known, told = estimates.of(cell), read_progress(root / "work" / cell.fingerprint[:SHORT] / "state")
    if known is None or known.like != "size":
        return given.remaining() > 0
    done = told["step"] / told["total"] if told.get("total") else 0.0
    return known.seconds * (1 - done) <= given.remaining()


def _pull(worker: Worker) -> int:
    committed, last, busy = 0, None, time.monotonic()
    _drop_what_served(worker)
    while not worker.stop:
        look_around(worker)
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


def _drop_what_served(worker: Worker) -> None:
    if worker.window is not None:
        worker.board.refresh()
        worker.window.sweep()


def _wait(worker: Worker, waited: float) -> bool:
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


def _run(worker: Worker, attempt: Attempt) -> bool:
    """One attempt, from its claim to the event that ends it; whether it was committed."""
    cell = attempt.cell
    base = {"fingerprint": cell.fingerprint, "cell": cell.name, "attempt": attempt.number}
    worker.say({**base, "event": "started", "node": node_of(worker)})
    started = time.monotonic()
    try:
        _warm_up(worker, cell)
        started = time.monotonic()
        report = run_in_child(worker, attempt)
    except Exception as error:  # a library that does not import, no room for a folder, no memory for a process
        report = failure(error)
    seconds = round(time.monotonic() - started, 3)
    worker.say({**base, "seconds": seconds, "node": node_of(worker), **report})
    if report.get("reason") == Failure.GPU_FAULT and worker.given.slurm is not None:
        worker.stop, worker.suspect = worker.stop or "leave", report.get("node", node_of(worker))
    if worker.leader is not None and len(worker.leader.links) < worker.given.nodes - 1:
        worker.stop = worker.stop or "requeue"  # a node is gone, or its task
    return bool(report["event"] == "committed")


def _warm_up(worker: Worker, cell: Cell) -> None:
    """Import in the parent, once, what the stage imports: the next child starts with it."""
    for name in getattr(jobs.load(cell.job), "WARM", ()):
        if name not in worker.warm:
            importlib.import_module(name)
            worker.warm.add(name)


def _leave(worker: Worker, submission: dict[str, Any], array: str, previous: dict[signal.Signals, Any]) -> None:
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
