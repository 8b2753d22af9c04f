"""`tidemark usage`: what a study has cost. It asks sacct once, for all jobs of the study; and squeue only for attempts
whose run accounting does not list, as rarely as everybody else does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from slurm import profiles, queue, spent, submissions
from slurm.profiles import Shape
from slurm.spent import COMMITTED, RUNNING, Attempt, Cost, Run, Spent, Worker
from slurm.terminal import DEFAULT_ROOT, AsJson, Root, StudyPath, err, out, print_json
from toolkit import study_file
from toolkit.failures import Failure
from toolkit.fingerprint import SHORT
from toolkit.manifest import claims, index, record
from toolkit.manifest.log import Reader


def usage(study: StudyPath, root: Root = DEFAULT_ROOT, as_json: AsJson = False) -> None:
    """What a study has cost so far: GPU-hours, CPU-hours and node-hours by stage, from Slurm's accounting.

    What went to attempts that failed, were lost or interrupted is shown apart, and so are start-up and waiting.

    Example: `tidemark usage configs/studies/quickstart.yaml`
    """
    words = study_file.load(study, ())
    found = read(root.expanduser().absolute(), words.name)
    if as_json:
        print_json(found.as_json())
        return
    out.print(_render(found.spent, list(words.stages)))
    for remark in found.said:
        err.print(f"[yellow]{escape(remark)}[/]")


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a study has cost, and what is to be said of how that is known."""

    study: str
    spent: Spent
    said: Sequence[str]

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        costs = self.spent
        return {
            "study": self.study,
            "stages": {stage: cost.as_json() for stage, cost in costs.stages.items()},
            "failures": [{"stage": s, "end": end, **cost.as_json()} for (s, end), cost in costs.failures.items()],
            "idle": costs.idle.as_json(),
            "total": costs.total().as_json(),
            "from": {"accounting": costs.accounting.as_json(), "log": costs.log.as_json()},
            "said": list(self.said),
        }


def read(root: Path, study: str) -> Found:
    """Ask accounting for the jobs of a study, and divide what it says by the log."""
    known = spent.workers(Reader(root, study).new_events())
    arrays: dict[str, Shape] = {}  # by name; also what was dropped, which may have come all the same
    shapes: dict[tuple[int, str], Shape] = {}
    ids: set[str] = {worker.key[0].split("_")[0] for worker in known} - {""}
    for number in submissions.numbers(root, study):
        content = submissions.read(root, study, number)
        given = profiles.read(content["profile"]).shapes if "profile" in content else {}
        shapes |= {(number, name): shape for name, shape in given.items()}
        for name, array in content.get("arrays", {}).items():
            arrays[name] = given[array["shape"]]
            ids |= {array["job"]} if "job" in array else set()
    said = []
    try:
        rows = queue.sacct(sorted(ids), spent.FIELDS)
    except queue.SlurmError as error:
        rows = []
        said.append(
            f"accounting does not answer ({' '.join(str(error).split())}), so these numbers are from the log alone:"
            " each worker counts from its first word to its last, with what its profile asks for"
        )
    listed = spent.listed(rows, arrays)
    runs = spent.gather(known, listed, shapes)
    return Found(study=study, spent=spent.divide(runs, _Fates(root)), said=[*said, *_remarks(runs, bool(said))])


def _remarks(runs: Sequence[Run], silent: bool) -> list[str]:
    said = []
    outside = [worker for run in runs if run.alive is None for worker in run.workers]
    late = sum("slurm" in worker.who for worker in outside)
    if late and not silent:
        said.append(f"accounting does not list {late} runs (it is some seconds late): they count by the log")
    if len(outside) > late:
        said.append(
            f"{len(outside) - late} workers ran outside Slurm: they count from their first word in the log to their"
            " last, with the CPUs and GPUs of their profile"
        )
    if not all(run.tracked for run in runs):
        said.append(
            "accounting does not track GPUs here (AccountingStorageTRES): a job counts with those that its profile"
            " asks for"
        )
    return said


class _Fates:
    """How attempts ended that nobody speaks of: the artifact tells, or else whether the worker lives."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.queue = queue.Queue(root)
        names = index.committed(root).items()
        self.artifacts = {s: root / "artifacts" / job / name for job, made in names for s, name in made.items()}

    def __call__(self, run: Run, worker: Worker, attempt: Attempt) -> tuple[str, float | None]:
        short = attempt.fingerprint[:SHORT]
        if short in self.artifacts:  # its worker died between the rename and the log line
            told = record.read(self.artifacts[short]).get("provenance", {})
            if told.get("attempt") == attempt.number:
                return COMMITTED, told["seconds"]
        alive = run.alive
        if alive is None:
            alive = self.queue.alive(worker.who, claims.made(self.root, short, attempt.number)) is not False
        return (RUNNING if alive and not worker.ended else Failure.LOST), None


def _render(costs: Spent, order: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("stage")
    for name in ("attempts", "GPU-hours", "CPU-hours", "node-hours"):
        table.add_column(name, justify="right")
    places = {stage: place for place, stage in enumerate(order)}  # stages that the study no longer has come last
    for stage in sorted(costs.stages, key=lambda stage: places.get(stage, len(places))):
        table.add_row(escape(stage), *numbers(costs.stages[stage]))
    if costs.failures:
        table.add_row("failed, lost, interrupted", *numbers(spent.total(costs.failures.values())))
    for (stage, end), cost in sorted(costs.failures.items(), key=lambda entry: places.get(entry[0][0], len(places))):
        table.add_row(f"  {escape(stage)}: {end}", *numbers(cost), style="dim")
    table.add_row("start-up and waiting", *numbers(costs.idle))
    table.add_row("total", *numbers(costs.total()), style="bold")
    return table


def numbers(cost: Cost) -> list[str]:
    """How many, and hours of GPUs, CPUs and nodes, as tables show them; a dot for nothing."""
    times = (cost.gpus, cost.cpus, cost.nodes)
    return [str(cost.attempts or "·"), *(f"{time / spent.HOUR:,.3f}" if time else "·" for time in times)]
