"""A worker pulls cells of one launch until nothing is left: claim, fork a child that runs and commits the stage, log.

The parent imports the heavy libraries once and starts no thread; the child owns threads and devices, and its death
costs one attempt. `work` is what submitit runs, on this machine or in a Slurm job.
"""

import ctypes
import importlib
import json
import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jobs
from slurm import submissions
from slurm.board import Attempt, Board
from toolkit import provenance
from toolkit.expand import choose
from toolkit.failures import Failure, UpstreamDamaged, classify
from toolkit.fingerprint import SHORT
from toolkit.manifest import claims, record
from toolkit.manifest.files import discard
from toolkit.manifest.log import Writer
from toolkit.spec import build
from toolkit.stage import Artifact, Context, Interrupted
from toolkit.study import Cell

POLL_SECONDS = 0.2  # how often an idle worker looks whether somebody finished what it waits for
PR_SET_PDEATHSIG = 1
CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}
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


@dataclass(kw_only=True)
class _Worker:
    root: Path
    study: str
    launch: int
    board: Board
    writer: Writer
    info: dict[str, Any]
    stopping: bool = False
    child: int = 0
    warm: set[str] = field(default_factory=set)


def work(root: Path, study: str, launch: int) -> int:
    """Run cells of a launch until none is left that this worker could run; returns how many it committed."""
    os.environ.update(ENVIRONMENT)
    writer = Writer(root, study)
    worker = _Worker(
        root=root,
        study=study,
        launch=launch,
        board=Board(root, study, launch, submissions.cells(root, study, launch)),
        writer=writer,
        info={**claims.identity(), "worker": writer.name, "study": study, "launch": launch},
    )
    writer.append({"event": "worker-started", "launch": launch, "who": claims.identity()})
    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: _stop(worker))
    try:
        return _pull(worker)
    finally:
        writer.append({"event": "worker-ended", "launch": launch})


def _stop(worker: _Worker) -> None:
    """The allocation ends soon: start nothing more, and let the running stage save at its next step."""
    worker.stopping = True
    if worker.child:
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(worker.child, signal.SIGUSR2)


def _pull(worker: _Worker) -> int:
    committed, last = 0, None
    while not worker.stopping:
        worker.board.refresh()
        attempt = worker.board.take_next(last, worker.info)
        if attempt is not None:
            committed += _run(worker, attempt)
            last = attempt.cell
        elif worker.board.others_at_work():
            time.sleep(POLL_SECONDS)
        else:
            break
    return committed


def _run(worker: _Worker, attempt: Attempt) -> bool:
    """One attempt, from its claim to the event that ends it; whether it was committed."""
    cell = attempt.cell
    base = {"fingerprint": cell.fingerprint, "cell": cell.name, "launch": worker.launch}
    if attempt.lost is not None:
        message = "its worker ended without a word"
        worker.writer.append(
            {**base, "event": "lost", "attempt": attempt.lost, "reason": Failure.LOST, "message": message}
        )
    base["attempt"] = attempt.number
    worker.writer.append({**base, "event": "started"})
    started = time.monotonic()
    try:
        _warm_up(worker, cell)
        started = time.monotonic()
        report = _in_child(worker, attempt)
    except Exception as error:  # a library that does not import, no room for a folder, no memory for a process
        report = _failure(error)
    worker.writer.append({**base, "seconds": round(time.monotonic() - started, 3), **report})
    return report["event"] == "committed"


def _warm_up(worker: _Worker, cell: Cell) -> None:
    """Import in the parent, once, what the stage imports: the next child starts with it."""
    for name in getattr(jobs.load(cell.job), "WARM", ()):
        if name not in worker.warm:
            importlib.import_module(name)
            worker.warm.add(name)


def _in_child(worker: _Worker, attempt: Attempt) -> dict[str, Any]:
    """Fork, run, commit; returns the event that ends the attempt."""
    work_folder = worker.root / "work" / attempt.cell.fingerprint[:SHORT]
    out = work_folder / f"out.{attempt.number}"
    (work_folder / "state").mkdir(parents=True, exist_ok=True)
    _discard_stale(worker.root, work_folder)
    out.mkdir()
    reading, writing = os.pipe()
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    worker.child = os.fork()
    if worker.child == 0:
        os.close(reading)
        _child(worker, attempt, out, parent, writing)  # never returns
    os.close(writing)
    try:
        if worker.stopping:  # the signal came before there was a child to tell
            os.kill(worker.child, signal.SIGUSR2)
        _, status = os.waitpid(worker.child, 0)
    finally:
        worker.child = 0
    os.set_blocking(reading, False)  # a rank that the child left behind may hold the pipe open
    with open(reading, "rb") as pipe:
        said = pipe.read()
    report = json.loads(said) if said else _silent_death(os.waitstatus_to_exitcode(status))
    if report["event"] == "committed":
        discard(work_folder)
    elif out.exists():
        discard(out)  # before the event is logged: on a full disk this is the room that it needs
    return dict(report)


def _discard_stale(root: Path, work_folder: Path) -> None:
    """Remove what dead attempts left. One that may live on another host keeps its folder: emptied under its hands, it
    could publish the half that it writes from now on."""
    for stale in work_folder.glob("out.*"):
        number = int(stale.name.removeprefix("out."))
        if claims.liveness(claims.read_claim(root, work_folder.name, number)) is False:
            discard(stale)


def _silent_death(code: int) -> dict[str, Any]:
    if -code in CRASHES:
        reason, message = Failure.BUG, f"crashed with {signal.Signals(-code).name}"
    elif code < 0:
        reason, message = Failure.LOST, f"killed by {signal.Signals(-code).name} (by a person, or for lack of memory)"
    else:
        reason, message = Failure.LOST, f"exited with status {code} and no report"
    return {"event": "failed", "reason": reason, "message": message}


def _child(worker: _Worker, attempt: Attempt, out: Path, parent: int, writing: int) -> None:
    """In the forked child: run the stage, commit, report through the pipe, exit without the parent's clean-up."""
    code = 1
    try:
        _die_with(parent)
        log = out.parent / f"log.{attempt.number}.txt"
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        report = _attempt(worker, attempt, out, log)
        code = 0
    except BaseException as error:
        report = _failure(error)
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


def _attempt(worker: _Worker, attempt: Attempt, out: Path, log: Path) -> dict[str, Any]:
    cell = attempt.cell
    job = jobs.load(cell.job)
    chosen = choose(job, cell.spec)
    ctx = Context(state=out.parent / "state", resources=cell.resources)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGUSR2, lambda _number, _frame: setattr(ctx, "stop_requested", True))
    if worker.stopping:  # the signal came after the fork and before this handler
        ctx.stop_requested = True
    inputs = {name: _artifact(worker.root, upstream) for name, upstream in cell.inputs.items()}
    started = time.time()
    try:
        metrics = job.run(build(chosen.Spec, cell.spec), chosen.Inputs(**inputs), out, ctx)
    except Interrupted:
        return {"event": "interrupted"}
    made = {
        "spec": cell.spec,
        "inputs": {name: upstream.fingerprint for name, upstream in cell.inputs.items()},
        "metrics": metrics or {},
        "provenance": {
            "version": cell.version,
            "study": worker.study,
            "stage": cell.stage,
            "coords": cell.coords,
            "identity": provenance.identity(),
            "machine": provenance.machine(),
            "attempt": attempt.number,
            "started": round(started, 3),
            "seconds": round(time.time() - started, 3),
        },
    }
    sys.stdout.flush()
    os.link(log, out / record.LOG)
    record.commit(
        worker.root, job=cell.job, label=cell.label, fingerprint=cell.fingerprint, out=out, record=made
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
    record.wait_visible(folder, made)
    return Artifact(path=record.payload(folder, made), fingerprint=cell.fingerprint, record=made)


def _failure(error: BaseException) -> dict[str, Any]:
    """The event of an attempt that ended in an exception."""
    return {"event": "failed", "reason": classify(error), "message": _sentence(error)}


def _sentence(error: BaseException) -> str:
    """The message of an error, or its type where it has none; long ones are cut, the log has all of it."""
    text = str(error).strip() or type(error).__name__
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    return (kind + text)[:2000]
