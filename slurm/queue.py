"""What Slurm says: one squeue for all of a user's jobs, at most once in a while, kept under the root for every process.

Whether the maker of a claim still lives is a question about its job. A snapshot answers it only if squeue was asked
after the claim was made; both times are read off the root's file system, so the clocks of two hosts are never compared.
"""

import getpass
import json
import os
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from toolkit.failures import Failure
from toolkit.manifest import claims

# States in which a job's processes may run. What is pending, requeued ones too, has none.
ALIVE = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "CONFIGURING", "RESIZING"}
WAITING = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"}
FIELDS = (
    "ArrayJobID", "ArrayTaskID", "JobID", "State", "RestartCnt", "Reason", "NodeList", "TimeUsed", "StartTime", "Name",
)  # fmt: skip
SECONDS = 30  # that a command of Slurm's may take
BEAT_SECONDS = 60.0  # how often a worker writes to its log at least
SILENT_SECONDS = 2.5 * BEAT_SECONDS  # after which one of which Slurm knows nothing is believed dead
POLL_SECONDS = 60.0  # between two questions: admins complain of more
# How the end of a job is told by sacct -> why the attempt that was lost with it failed.
ENDS = {
    "NODE_FAIL": Failure.NODE_FAIL,
    "BOOT_FAIL": Failure.NODE_FAIL,
    "PREEMPTED": Failure.PREEMPTED,
    "TIMEOUT": Failure.TIMEOUT,
    "DEADLINE": Failure.TIMEOUT,
    "OUT_OF_MEMORY": Failure.OOM,
}


class SlurmError(OSError):
    """A command of Slurm's failed or did not answer; the message is what it said."""


def command(*words: str, seconds: float = SECONDS) -> str:
    """Run a command of Slurm's and give what it prints.

    Raises:
        SlurmError: it is not installed, fails, or takes too long.
    """
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=seconds, check=False, errors="replace")
    except FileNotFoundError:
        raise SlurmError(f"there is no {words[0]!r} here: is this a login node of the cluster?") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{words[0]} did not answer within {seconds:.0f} s") from None
    if done.returncode:
        raise SlurmError(f"{words[0]}: {(done.stderr or done.stdout).strip() or f'exit status {done.returncode}'}")
    return done.stdout


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job, or one task of an array (`12_3`), as squeue lists it. `raw` is the number that SLURM_JOB_ID holds."""

    id: str
    raw: str
    state: str
    restarts: int
    reason: str
    nodes: str
    elapsed: str
    start: str
    name: str

    @property
    def alive(self) -> bool:
        return self.state in ALIVE

    @property
    def waiting(self) -> bool:
        return self.state in WAITING


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """All jobs of this user that have not ended long ago. `began` is before squeue was asked, by the file system's
    clock; `error` is why it could not be."""

    began: float
    cluster: str
    jobs: Mapping[str, Job] = field(default_factory=dict)
    error: str = ""


class Queue:
    """Asks squeue at most every `seconds` for all processes that work under a root."""

    def __init__(self, root: Path, seconds: float = POLL_SECONDS) -> None:
        self.root, self.seconds = root, seconds
        self.file = root / "index" / f"queue-{getpass.getuser()}.json"
        self.asked = -1e9  # by this process, by its own clock
        self.known: Snapshot | None = None

    def snapshot(self, *, fresh: bool = False) -> Snapshot:
        """The latest snapshot; a new one if it is old, or `fresh` is asked for."""
        found = self._read()
        now = time.time()
        recent = found is not None and -self.seconds <= now - found.began <= self.seconds  # a clock may be off
        if not fresh and self.known is not None and time.monotonic() - self.asked < self.seconds:
            return found if found is not None and found.began > self.known.began else self.known
        if not fresh and recent and found is not None:
            return found
        self.asked = time.monotonic()
        self.known = self._ask(found.cluster if found else "")
        return self.known

    def alive(self, info: Mapping[str, Any], claimed: float) -> bool | None:
        """Whether the process that made a claim lives: what this host sees, or else what Slurm says of its job.

        claimed: when the claim was made, by the file system's clock. None: it cannot be said (yet).
        """
        seen = claims.liveness(info)
        if seen is not None or "slurm" not in info:
            return seen
        snapshot = self.snapshot()
        if snapshot.error or snapshot.cluster != info["slurm"]["cluster"]:
            return None
        job = snapshot.jobs.get(info["slurm"]["job"])
        if job is None or job.name != info["slurm"]["name"]:
            # It ended long ago, or a controller that crashed has forgotten it and gives its number out again: then its
            # processes may go on for a while. The worker's own log is the second opinion.
            return False if snapshot.began > max(claimed, self._heard(info)) + SILENT_SECONDS else None
        if job.restarts != info["slurm"]["restarts"]:
            return False if job.restarts > info["slurm"]["restarts"] else None
        if job.waiting:
            return None  # it was seen before it started
        return job.alive

    def _heard(self, info: Mapping[str, Any]) -> float:
        """When a worker last wrote to its log, by the file system's clock."""
        try:
            return (self.root / "log" / info["study"] / f"{info['worker']}.jsonl").stat().st_mtime
        except (FileNotFoundError, KeyError):
            return 0.0

    def _ask(self, cluster: str) -> Snapshot:
        part = self.file.with_name(f".{self.file.name}.{uuid.uuid4().hex}")
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            part.touch()
            began = part.stat().st_mtime
        except OSError:  # a full disk, or a root that may only be read: nobody else will know
            part, began = Path(), time.time()
        try:
            cluster = cluster or cluster_name()
            found = Snapshot(began=began, cluster=cluster, jobs=squeue())
        except SlurmError as error:
            found = Snapshot(began=began, cluster=cluster, error=str(error))
        if part.name:
            _publish(part, self.file, found)
        return found

    def _read(self) -> Snapshot | None:
        try:
            content = json.loads(self.file.read_bytes())
            jobs = {name: Job(**words) for name, words in content.pop("jobs").items()}
            return Snapshot(**content, jobs=jobs)
        except (OSError, ValueError, TypeError, KeyError):  # none yet, torn, or of another version
            return None


def _publish(part: Path, file: Path, snapshot: Snapshot) -> None:
    try:
        part.write_text(json.dumps(asdict(snapshot)))
        os.replace(part, file)
    except OSError:  # a full disk: the snapshot serves this process alone
        part.unlink(missing_ok=True)


def cluster_name() -> str:
    """The name of the cluster that this host's commands talk to."""
    return os.environ.get("SLURM_CLUSTER_NAME") or configuration().get("ClusterName", "")


def configuration() -> dict[str, str]:
    """`scontrol show config`."""
    lines = [line.partition("=") for line in command("scontrol", "show", "config").splitlines()]
    return {key.strip(): value.strip() for key, equals, value in lines if equals}


def squeue(*words: str) -> dict[str, Job]:
    """This user's jobs by id, arrays task by task; by default all of them."""
    form = ",".join(f"{name}:|" for name in FIELDS)
    text = command("squeue", "--noheader", "--array", "--states=all", "--user", getpass.getuser(), "-O", form, *words)
    found = {}
    for line in text.splitlines():
        job = parse(line)
        found[job.id] = job
    return found


def parse(line: str) -> Job:
    """One line of squeue; a job's name may hold the separator, and is last for that."""
    parts = [part.strip() for part in line.removesuffix("|").split("|", len(FIELDS) - 1)]
    array, task, raw, state, restarts, reason, nodes, elapsed, start, name = parts
    return Job(
        id=f"{array}_{task}" if task.isdigit() else raw, raw=raw, state=state, restarts=int(restarts or 0),
        reason=reason, nodes=nodes, elapsed=elapsed, start=start, name=name,
    )  # fmt: skip


def sacct(ids: Sequence[str], fields: Sequence[str]) -> list[dict[str, str]]:
    """What accounting knows of jobs: one row for each run of each, oldest first, and some seconds late."""
    if not ids:
        return []
    words = ("sacct", "--duplicates", "--allocations", "--noheader", "--parsable2")
    lines = command(*words, "--jobs", ",".join(ids), "--format", ",".join(fields)).splitlines()
    return [dict(zip(fields, line.split("|", len(fields) - 1), strict=True)) for line in lines]


def verdict(info: Mapping[str, Any]) -> tuple[Failure, str]:
    """Why the attempt of a claim whose maker is gone was lost: the type and a sentence."""
    if "slurm" not in info:
        return Failure.LOST, "its worker ended without a word"
    job, restarts = info["slurm"]["job"], info["slurm"]["restarts"]
    try:
        rows = sacct([job], ["JobID", "State", "NodeList"])
    except SlurmError as error:
        return Failure.LOST, f"its job {job} is gone, and accounting cannot say how ({error})"
    if len(rows) <= restarts or rows[restarts]["State"] in ("RUNNING", "PENDING"):  # accounting is seconds late
        return Failure.LOST, f"its worker in job {job} ended without a word"
    state, nodes = rows[restarts]["State"], rows[restarts]["NodeList"]
    reason = ENDS.get(state.split()[0], Failure.LOST)
    return reason, f"its job {job} on {nodes} ended as {state.split(' by ')[0]}"


def adjust(job: str, later: float, exclude: Sequence[str]) -> None:
    """Let a job that has just been requeued start no earlier than `later` seconds from now, and not on some nodes."""
    words = [f"StartTime=now+{later:.0f}"] if later else []
    words += [f"ExcNodeList={','.join(exclude)}"] if exclude else []
    if words:
        command("scontrol", "update", f"JobId={job}", *words)
