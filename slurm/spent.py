"""How the time that a study held nodes, CPUs and GPUs divides over its stages; asks nobody, see `slurm.usage`.

Accounting knows for how long each run of each job held what, and the log which attempts ran in it, and for how long. A
run's time is divided over its attempts; what is left of it is start-up and waiting. A worker that accounting does not
list (it ran outside Slurm, or accounting is away, or late) counts from its first word in the log to its last. Times are
whole milliseconds, so that the parts add up to the whole exactly; only times of one process are compared.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from slurm.profiles import Shape
from slurm.queue import ALIVE

FIELDS = ("JobID", "State", "ElapsedRaw", "NNodes", "AllocCPUS", "AllocTRES", "ReqTRES", "JobName")  # of sacct
COMMITTED, RUNNING, INTERRUPTED = "committed", "running", "interrupted"
HOUR = 3_600_000  # milliseconds
Key = tuple[str, int]  # a job and which of its runs, or a fingerprint and which attempt


@dataclass(frozen=True, kw_only=True)
class Size:
    """What is held, on all nodes together."""

    nodes: int
    cpus: int
    gpus: int


def size_of(shape: Shape) -> Size:
    """What a worker of this shape holds."""
    return Size(nodes=shape.nodes, cpus=shape.nodes * shape.cpus, gpus=shape.nodes * shape.gpus)


@dataclass(kw_only=True)
class Cost:
    """Attempts, and milliseconds of nodes, CPUs and GPUs."""

    attempts: int = 0
    nodes: int = 0
    cpus: int = 0
    gpus: int = 0

    def add(self, size: Size, milliseconds: int, attempts: int = 0) -> None:
        """Count what was held for so long."""
        self.attempts += attempts
        self.nodes += size.nodes * milliseconds
        self.cpus += size.cpus * milliseconds
        self.gpus += size.gpus * milliseconds

    def as_json(self) -> dict[str, float]:
        """In hours, for `--json`."""
        hours = {f"{name}_hours": getattr(self, f"{name}s") / HOUR for name in ("node", "cpu", "gpu")}
        return {"attempts": self.attempts, **hours}


def total(costs: Iterable[Cost]) -> Cost:
    """All of them together."""
    found = Cost()
    for cost in costs:
        for name, value in vars(cost).items():
            setattr(found, name, getattr(found, name) + value)
    return found


@dataclass(kw_only=True)
class Attempt:
    """A try at a cell. seconds: as its worker told them. end: COMMITTED, INTERRUPTED, or the type of its failure; empty
    where nobody has said (yet)."""

    fingerprint: str
    number: int
    stage: str
    began: float
    seconds: float | None = None
    end: str = ""


@dataclass(kw_only=True)
class Worker:
    """What the log tells of one worker; times are of its host's clock. who: as its claims name it."""

    launch: int
    shape: str
    who: Mapping[str, Any]
    began: float
    last: float
    ended: bool = False
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def key(self) -> Key:
        """Which run of which job it is; no job outside Slurm."""
        slurm = self.who.get("slurm")
        return (slurm["job"], slurm["restarts"]) if slurm else ("", 0)


def workers(events: Iterable[Mapping[str, Any]]) -> list[Worker]:
    """The workers of a study and their attempts, from its log.

    What several say of one attempt: `committed` is stronger than what else its own worker says, and that than what
    others say of a worker that is gone.
    """
    found: dict[str, Worker] = {}
    begun: dict[Key, tuple[str, Attempt]] = {}
    ends = []
    for event in events:
        kind, worker = event["event"], found.get(event["writer"])
        if kind == "worker-started":
            words = {"launch": event["launch"], "shape": event.get("shape", ""), "who": event["who"]}
            found[event["writer"]] = Worker(**words, began=event["time"], last=event["time"])
        elif worker is not None:
            worker.last, worker.ended = max(worker.last, event["time"]), kind == "worker-ended"
            if kind == "started":
                key, stage = (event["fingerprint"], event["attempt"]), event["cell"].split("[")[0]
                worker.attempts.append(Attempt(fingerprint=key[0], number=key[1], stage=stage, began=event["time"]))
                begun[key] = (event["writer"], worker.attempts[-1])
        if kind in (COMMITTED, INTERRUPTED, "failed", "lost"):
            ends.append(event)
    for event in ends:
        writer, attempt = begun.get((event["fingerprint"], event["attempt"]), ("", None))
        if attempt is not None:
            _end(attempt, event, own=writer == event["writer"])
    return list(found.values())


def _end(attempt: Attempt, event: Mapping[str, Any], own: bool) -> None:
    if own:
        attempt.seconds = event["seconds"]
    if own or not attempt.end:
        attempt.end = event["event"] if event["event"] in (COMMITTED, INTERRUPTED) else event["reason"]


@dataclass(kw_only=True)
class Run:
    """What was held for how long, and by which workers. alive: whether it still is, where accounting lists it. tracked:
    whether accounting counts its GPUs."""

    size: Size
    milliseconds: int
    alive: bool | None = None
    tracked: bool = True
    workers: list[Worker] = field(default_factory=list)


def listed(rows: Iterable[Mapping[str, str]], shapes: Mapping[str, Shape]) -> dict[Key, Run]:
    """The runs of the rows of sacct, which come oldest first.

    shapes: by the names of arrays; jobs of other names are somebody else's, since a controller that crashed gives the
    same numbers out again.
    """
    found: dict[Key, Run] = {}
    runs: defaultdict[str, int] = defaultdict(int)
    for row in rows:
        shape = shapes.get(row["JobName"])
        if shape is None or row["State"] == "PENDING":  # about to start it may have a time already, but holds nothing
            continue
        nodes = int(row["NNodes"])
        words = (word.partition("=") for word in (row["AllocTRES"] or row["ReqTRES"]).split(","))
        gpus = {name: int(count) for name, _, count in words if name.startswith("gres/gpu")}
        # A site may track types alone ("gres/gpu:a100"), or beside their sum.
        count = gpus.get("gres/gpu", sum(gpus.values())) if gpus else nodes * shape.gpus
        found[row["JobID"], runs[row["JobID"]]] = Run(
            size=Size(nodes=nodes, cpus=int(row["AllocCPUS"]), gpus=count),
            milliseconds=1000 * int(row["ElapsedRaw"]), alive=row["State"] in ALIVE,
            tracked=bool(gpus) or not shape.gpus,
        )  # fmt: skip
        runs[row["JobID"]] += 1
    return found


def gather(known: Sequence[Worker], runs: Mapping[Key, Run], shapes: Mapping[tuple[int, str], Shape]) -> list[Run]:
    """Put workers into the runs of accounting, and make a run of each other one. shapes: by launch and name; a worker
    of none (on the login node) has one CPU."""
    found = list(runs.values())
    for worker in known:
        if worker.key in runs:
            runs[worker.key].workers.append(worker)
        else:
            size = size_of(shapes.get((worker.launch, worker.shape), Shape(hours=1)))
            lived = round(1000 * (worker.last - worker.began))
            found.append(Run(size=size, milliseconds=lived, workers=[worker]))
    return found


@dataclass(frozen=True, kw_only=True)
class Spent:
    """stages: attempts that were committed, or still run. failures: by stage and how they ended. idle: start-up and
    waiting. accounting, log: the same time by where its length was read."""

    stages: Mapping[str, Cost]
    failures: Mapping[tuple[str, str], Cost]
    idle: Cost
    accounting: Cost
    log: Cost

    def total(self) -> Cost:
        """All of it."""
        return total((self.accounting, self.log))


Fate = Callable[[Run, Worker, Attempt], tuple[str, float | None]]


def divide(runs: Sequence[Run], fate: Fate) -> Spent:
    """Divide what was held over stages. fate: end and seconds (None: until its run's end) of an attempt that nobody
    speaks of."""
    stages: defaultdict[str, Cost] = defaultdict(Cost)
    failures: defaultdict[tuple[str, str], Cost] = defaultdict(Cost)
    idle, accounting, log = Cost(), Cost(), Cost()
    for run in runs:
        told = [(a.stage, *_told(run, worker, a, fate)) for worker in run.workers for a in worker.attempts]
        shares = _shares(run.milliseconds, [time for _, _, time in told])
        for (stage, end, _), share in zip(told, shares, strict=True):
            kept = end in (COMMITTED, RUNNING)
            (stages[stage] if kept else failures[stage, end]).add(run.size, share, attempts=1)
        idle.add(run.size, run.milliseconds - sum(shares))
        (log if run.alive is None else accounting).add(run.size, run.milliseconds, attempts=len(told))
    return Spent(stages=stages, failures=failures, idle=idle, accounting=accounting, log=log)


def _told(run: Run, worker: Worker, attempt: Attempt, fate: Fate) -> tuple[str, int]:
    """End and milliseconds of an attempt. One whose worker did not tell lasted until its run's end; what the job needed
    to start its worker is then counted with it, since that cannot be told apart without another host's clock."""
    end, seconds = (attempt.end, attempt.seconds) if attempt.end else fate(run, worker, attempt)
    if seconds is not None:
        return end, round(1000 * seconds)
    return end, max(0, run.milliseconds - round(1000 * (attempt.began - worker.began)))


def _shares(whole: int, parts: Sequence[int]) -> list[int]:
    """The parts, made smaller in proportion if they are more than the whole: sacct counts whole seconds, and leaves out
    those in which a job was suspended."""
    most = sum(parts)
    return [part * whole // most for part in parts] if most > whole else list(parts)
