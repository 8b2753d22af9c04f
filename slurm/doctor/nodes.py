"""One small job a shape, through submitit like a worker of a launch, on two nodes where two can be had; or two
processes on this machine. While they run, this host answers what they ask through the root's files.

A job's output goes nowhere, and the first thing that it does is to look for the root: where Slurm cannot write the
output a job ends without a word, and nobody would know why.
"""

import dataclasses
import getpass
import json
import os
import shlex
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slurm import arrays, queue
from slurm.doctor import probe
from slurm.doctor.exchange import KINDS, Answers
from slurm.doctor.probe import LOGIN, Order
from slurm.doctor.shape import batch_file, refusal
from slurm.launch import visible_gpus
from slurm.profiles import Profile
from toolkit.manifest.record import refresh
from toolkit.provenance import HOME

PREFIX = ".doctor-"  # of a doctor's folder under the root
MINUTES = 10  # the time limit of a job
ABSENT, CLOSED = 71, 72  # how a job ends that does not find the root on a node, or cannot write there
# FOLDER: run on every node. A new folder may hide for a moment behind what an NFS client remembers of its parent.
LOOK = f"""
n=0
until cat "$0/token" >/dev/null 2>&1; do
    n=$((n+1))
    [ $n -lt 5 ] || exit {ABSENT}
    ls "$0/.." >/dev/null 2>&1
    sleep 1
done
touch "$0/seen-$SLURMD_NODENAME" || exit {CLOSED}
"""
LATE_SECONDS, SOON_SECONDS = 30.0, 2.0  # after a job's end, for its last files to be seen; if it failed there are few
IDLE_SECONDS, BUSY_SECONDS = 0.3, 0.02  # between two looks at the files
ASK_SECONDS, MOST_ASK_SECONDS = 1.0, 30.0  # between two questions to Slurm, more and more
END_SECONDS, LAST_SECONDS = 60.0, 5.0  # that a cancelled job may take to end; one that has told all


@dataclass(kw_only=True)
class Visit:
    """The job of a shape. `unmade` says why there are no results: it was not submitted, or did not start in time."""

    shape: str
    folder: Path
    name: str
    tasks: int = 0
    job: Any = None
    unmade: str = ""
    answers: list[list[Answers]] = field(default_factory=list)
    state: queue.Job | None = None
    started: bool = False
    ended: float | None = None

    @classmethod
    def of(cls, folder: Path, shape: str) -> "Visit":
        """Of the doctor who has that folder; nothing is submitted yet."""
        return cls(
            shape=shape, folder=folder / shape, name=f"tidemark-doctor-{folder.name.removeprefix(PREFIX)}-{shape}"
        )

    @property
    def open(self) -> bool:
        """Whether there is something to wait for."""
        if self.job is None or self.unmade:
            return False
        lag = LATE_SECONDS if self.state and self.state.state == "COMPLETED" else SOON_SECONDS
        if self.ended is not None and time.monotonic() - self.ended > lag:
            return False
        return not self.told

    @property
    def told(self) -> bool:
        """Whether every task has said what it found, or what it failed of."""
        return self.job is not None and all(
            self.job.task(task).paths.result_pickle.exists() for task in range(self.tasks)
        )

    def serve(self) -> None:
        """Answer what the tasks ask."""
        refresh(self.folder)
        if not self.started:
            self.started = any(self.folder.glob("seen-*"))
        for waiting in self.answers:
            if waiting:
                waiting[0].step()
                waiting[:] = [answers for answers in waiting if not answers.done]

    def results(self) -> list[dict[str, Any] | str]:
        """What each task found; or what it failed of, empty if it did not say."""
        found: list[dict[str, Any] | str] = []
        for task in range(self.tasks):
            job = self.job.task(task)
            if not job.paths.result_pickle.exists():
                found.append("")
            else:
                outcome, said = job._get_outcome_and_result()
                found.append(said if outcome == "success" else str(said).strip())
        return found

    def facts(self) -> dict[str, dict[str, Any]]:
        """Node -> what its task saw by itself; tasks of a job that ended early have left it too."""
        known = [json.loads(path.read_bytes()) for path in sorted(self.folder.glob("facts-*"))]
        return {facts["host"]: facts for facts in known}

    def log(self) -> str:
        """The last lines that the job printed."""
        paths = [self.folder / "batch.log", *sorted(self.folder.rglob("*_log.out"))]
        lines = [line for path in paths if path.exists() for line in path.read_text(errors="replace").splitlines()]
        return " / ".join(line.strip() for line in [line for line in lines if line.strip()][-3:])


def submit(visit: Visit, profile: Profile, endpoint: str) -> None:
    """Submit the job of a shape, with two tasks if sbatch would take it for two nodes."""
    for tasks in (2, 1):
        small = _small(profile, visit.shape, tasks)
        refused, said = refusal(batch_file(visit.folder, small, visit.shape))
        if not refused:
            break
    else:
        visit.unmade = f"sbatch refuses a job: {said}"
        return
    visit.tasks = tasks
    order = _prepare(visit, small, endpoint)
    array = {"shape": visit.shape, "workers": 1, "exclude": list(small.shapes[visit.shape].exclude)}
    executor = arrays.make_executor(visit.folder, "doctor", 1, small, visit.name, array)
    executor.parameters["additional_parameters"]["output"] = "/dev/null"
    place = shlex.quote(str(visit.folder))
    look = f"srun --nodes={tasks} --ntasks-per-node=1 --output=/dev/null sh -c {shlex.quote(LOOK)} {place}"
    first = [f"{look} </dev/null || exit $?", f"exec >>{place}/batch.log 2>&1"]
    executor.parameters["setup"] = [*first, *executor.parameters["setup"]]
    _run(visit, executor, order)


def submit_here(visit: Visit, profile: Profile, endpoint: str) -> None:
    """Two processes on this machine."""
    import submitit

    visit.tasks, visit.started = 2, True
    order = _prepare(visit, profile, endpoint)
    executor = submitit.LocalExecutor(visit.folder / "submissions")
    gpus = visible_gpus()
    executor.update_parameters(tasks_per_node=2, timeout_min=MINUTES, gpus_per_node=len(gpus), visible_gpus=gpus)
    _run(visit, executor, order)


def _small(profile: Profile, name: str, tasks: int) -> Profile:
    """The profile with a shape that asks for what a worker gets, for a short time and on fewer nodes."""
    shape = profile.shapes[name]
    options = {
        key: value for key, value in shape.sbatch.items() if key not in ("time", "output", "error", "array", "nodes")
    }
    small = dataclasses.replace(shape, nodes=tasks, hours=MINUTES / 60, workers=1, sbatch=options)
    return dataclasses.replace(profile, shapes={name: small}, grace_seconds=10)


def _prepare(visit: Visit, profile: Profile, endpoint: str) -> Order:
    visit.folder.mkdir()
    (visit.folder / "claims").mkdir()
    (visit.folder / "token").write_text(visit.name)
    for task in map(str, range(visit.tasks)):
        visit.answers.append([Answers(folder=visit.folder, me=LOGIN, other=task, kind=kind) for kind in KINDS])
    shape = profile.shapes[visit.shape]
    return Order(
        folder=visit.folder, tasks=visit.tasks, gpus=shape.gpus, scratch=profile.scratch, home=str(HOME),
        endpoint=endpoint,
    )  # fmt: skip


def _run(visit: Visit, executor: Any, order: Order) -> None:
    import submitit

    try:
        with arrays.outside_a_job():
            visit.job = executor.submit(probe.examine, order)
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        visit.unmade = f"sbatch refused the job: {str(error).strip()}"


def attend(visits: Sequence[Visit], seconds: float, ask: Callable[[Sequence[Visit]], None]) -> None:
    """Stay with the jobs until all have ended, or have not started within `seconds`. `ask` looks how they are."""
    began = asked = time.monotonic()
    pause = ASK_SECONDS
    while waiting := [visit for visit in visits if visit.open]:
        for visit in waiting:
            visit.serve()
        if time.monotonic() - asked > pause:
            ask(waiting)
            asked = time.monotonic()
            pause = 2 * ASK_SECONDS if any(v.started for v in waiting) else min(MOST_ASK_SECONDS, 1.5 * pause)
        for visit in waiting:
            if not visit.started and time.monotonic() - began > seconds:
                reason = visit.state.reason if visit.state else "Slurm does not say why"
                visit.unmade = f"job {visit.job.job_id} did not start within {seconds:g} s: {reason}"
        time.sleep(BUSY_SECONDS if any(visit.started for visit in waiting) else IDLE_SECONDS)


def ask_slurm(visits: Sequence[Visit]) -> None:
    """Let squeue say how the jobs are; while the controller is away they go on."""
    try:
        found = queue.squeue("--name", ",".join(visit.name for visit in visits))
    except queue.SlurmError:
        return
    rows = {job.name: job for job in found.values()}
    for visit in visits:
        row = rows.get(visit.name, visit.state)
        forgotten = visit.name not in rows and visit.state is not None  # it ended long ago
        visit.state = row
        visit.started = visit.started or (row is not None and row.alive)
        if forgotten or (row is not None and (row.restarts or not (row.alive or row.waiting))):
            visit.ended = visit.ended or time.monotonic()


def ask_here(visits: Sequence[Visit]) -> None:
    """The same for processes of this machine."""
    for visit in visits:
        if visit.job.done():
            visit.ended = visit.ended or time.monotonic()


def details(visit: Visit) -> Mapping[str, str]:
    """What `scontrol show job` says, with `Nodes` spelled out; nothing if it has forgotten the job."""
    try:
        text = queue.command("scontrol", "-o", "show", "job", visit.job.job_id)
        words = dict(word.split("=", 1) for word in text.split() if "=" in word)
        nodes = (
            queue.command("scontrol", "show", "hostnames", words["NodeList"]).split() if words.get("NodeList") else []
        )
    except queue.SlurmError:
        return {}
    return {**words, "Nodes": " ".join(nodes)}


def cancel(names: Sequence[str], patience: float = 0.0) -> str:
    """Take jobs out of the queue, by name, since sbatch may have been interrupted before it said their number, and
    wait until nothing of them runs; what may be left, and why. They are given `patience` seconds to end by themselves,
    which takes less time than being cancelled."""
    if not names:
        return ""
    try:
        if not _over(names, patience):
            for name in names:
                queue.command("scancel", "--user", getpass.getuser(), "--name", name)
            if not _over(names, END_SECONDS):
                raise queue.SlurmError(f"they do not end within {END_SECONDS:.0f} s")
    except queue.SlurmError as error:
        return f"jobs {', '.join(names)} may be left, `scancel --name` takes them away ({error})"
    return ""


def _over(names: Sequence[str], seconds: float) -> bool:
    """Whether no such job waits or runs, within some seconds."""
    deadline = time.monotonic() + seconds
    while any(job.alive or job.waiting for job in queue.squeue("--name", ",".join(names)).values()):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.3)
    return True


def stop_here(visits: Sequence[Visit]) -> str:
    """End the processes on this machine."""
    for visit in visits:
        if visit.job is not None and not visit.job.done():
            controller = int(visit.job.job_id)
            children = Path(f"/proc/{controller}/task/{controller}/children").read_text().split()
            for pid in (*map(int, children), controller):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            visit.job._process.wait()
    return ""
