"""What `tidemark status` shows: how many cells of a stage are in which state, what runs and how far, what failed."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from slurm.places import Places, latest, places
from slurm.queue import POLL_SECONDS, Queue
from slurm.window import Use, show, use
from toolkit.fingerprint import SHORT
from toolkit.manifest import record
from toolkit.plan import NEVER, STATES, CellState, Node, folder, survey
from toolkit.stage import read_progress
from toolkit.study import Cell

COLORS = {"done": "green", "running": "cyan", "failed": "red", "blocked": "yellow", "never-run": "dim"}


@dataclass(frozen=True, kw_only=True)
class Status:
    """`progress` holds what running cells last told (`Context.progress`), by fingerprint; `places` where a cluster's
    workers are; `disk` what is used of a disk budget."""

    study: str
    cells: Sequence[Node]
    states: Mapping[str, CellState]
    progress: Mapping[str, Mapping[str, Any]]
    places: Places | None = None
    disk: Use | None = None

    def counts(self) -> dict[str, Counter[str]]:
        """Stage -> state -> number of cells."""
        found: dict[str, Counter[str]] = {}
        for stage, cells in groupby(self.cells, key=lambda cell: cell.stage):
            found.setdefault(stage, Counter()).update(self.states[cell.fingerprint].state for cell in cells)
        return found

    def in_state(self, state: str) -> list[Node]:
        """The cells in a state; cells that share a fingerprint are listed once."""
        wanted = {print_ for print_, known in self.states.items() if known.state == state}
        unique: dict[str, Node] = {}
        for cell in self.cells if wanted else ():
            if cell.fingerprint in wanted:
                unique.setdefault(cell.fingerprint, cell)
        return list(unique.values())

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        listed = {
            state: [
                {
                    "cell": cell.name,
                    "fingerprint": cell.fingerprint,
                    "reason": self.states[cell.fingerprint].reason,
                    "message": self.states[cell.fingerprint].message,
                    "attempt": self.states[cell.fingerprint].attempt,
                    **(self._running(cell) if state == "running" else {}),
                }
                for cell in self.in_state(state)
            ]
            for state in ("running", "failed", "blocked")
        }
        stages = {stage: {state: counts[state] for state in STATES} for stage, counts in self.counts().items()}
        cluster = {"cluster": self.places.as_json()} if self.places else {}
        disk = {"disk": self.disk.as_json()} if self.disk else {}
        return {"study": self.study, "stages": stages, **listed, **cluster, **disk}

    def _running(self, cell: Node) -> dict[str, Any]:
        state = self.states[cell.fingerprint]
        job = self.places.job(state.job) if self.places else None  # it may have started since squeue was asked
        where = {"job": state.job} if state.job else {}
        where |= {"node": job.nodes, "elapsed": job.elapsed} if job and job.alive else {}
        return {"progress": self.progress.get(cell.fingerprint), **where}


def read(root: Path, study: str, cells: Sequence[Node]) -> Status:
    """The status of a study from what lies under the root, and from what Slurm says of a cluster's workers."""
    launched = latest(root, study)
    queue = Queue(root, launched[1].poll_seconds if launched else POLL_SECONDS)
    states = survey(root, study, cells, queue.alive)
    running = {print_ for print_, state in states.items() if state.state == "running"}
    return Status(
        study=study,
        cells=cells,
        states=states,
        progress={p: read_progress(root / "work" / p[:SHORT] / "state") for p in running},
        places=places(root, study, queue, *launched) if launched else None,
        disk=use(root, study),
    )


def render(status: Status, most: int = 12) -> RenderableType:
    """The status as a terminal shows it; at most `most` running and failed cells are listed."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("stage")
    for state in STATES:
        table.add_column(state, justify="right", style=COLORS[state])
    table.add_column("")
    for stage, counts in status.counts().items():
        numbers = [str(counts[state]) if counts[state] else "·" for state in STATES]
        table.add_row(stage, *numbers, ProgressBar(total=sum(counts.values()), completed=counts["done"], width=20))
    parts: list[RenderableType] = [table]
    running = status.in_state("running")
    if running:
        parts.append(_running(status, running[:most]))
    if status.places is not None:
        parts += workers(status.places)
    if status.disk is not None:
        parts.append(Text(f"downloads and conversions: {show(status.disk.used)} of {status.disk.budget}"))
    failed = status.in_state("failed")
    for cell in failed[:most]:
        known = status.states[cell.fingerprint]
        parts.append(Text.assemble((f"{known.reason} ", "bold red"), (cell.name, "bold"), f": {known.message}"))
    hidden = max(0, len(running) - most) + max(0, len(failed) - most)
    if hidden:
        parts.append(Text(f"and {hidden} more (--json lists all)", style="dim"))
    return Group(*parts)


def _running(status: Status, cells: Sequence[Node]) -> Table:
    table = Table.grid(padding=(0, 2))
    for cell in cells:
        told = status.progress.get(cell.fingerprint) or {}
        state = status.states[cell.fingerprint]
        job = status.places.job(state.job) if status.places else None
        where = [f"job {state.job}", *([job.nodes, job.elapsed] if job else [])] if state.job else []
        table.add_row(Text(cell.name, style="cyan"), *progress_words(told), *where)
    return table


def workers(places: Places) -> list[RenderableType]:
    """A line a shape: how many workers run, wait (and why) and have ended."""
    lines: list[RenderableType] = []
    shapes = [*(shape for shape, _ in places.jobs), *(shape for shape, _ in places.ended)]
    for shape in dict.fromkeys(shapes):
        jobs = [job for name, job in places.jobs if name == shape]
        run = sum(job.alive for job in jobs)
        waiting = Counter(job.reason for job in jobs if job.waiting)
        starts = sorted(job.start for job in jobs if job.waiting and job.start[:1].isdigit())
        words = [f"{run} run"] if run else []
        words += [f"{count} wait ({reason})" for reason, count in waiting.items()]
        words += [f"the next starts about {starts[0]}"] if starts else []
        words += [f"{count} {state}" for (name, state), count in places.ended.items() if name == shape]
        lines.append(Text(f"workers of shape {shape}: {', '.join(words)}"))
    lines += [Text(f"node {node} is left out of later launches: {why}", "yellow") for node, why in places.bad.items()]
    return lines + [Text(remark, "yellow") for remark in places.remarks]


def progress_words(told: Mapping[str, Any]) -> list[str]:
    """`["step 300/1000", "52,310 tokens/s", "ETA 0:32", "loss 2.31", "MFU 41 %", "61.2 GB"]`."""
    if not told:
        return ["starting", "", "", "", "", ""]
    rate = told.get("tokens_per_second")
    seconds = told.get("eta_seconds")
    loss = told.get("loss")
    return [
        f"{told['unit']} {told['step']:,}/{told['total']:,}",
        f"{rate:,.0f} tokens/s" if rate else "",
        f"ETA {int(seconds) // 60}:{int(seconds) % 60:02}" if seconds is not None else "",
        f"loss {loss:.3f}" if loss is not None else "",
        f"MFU {100 * told['mfu']:.0f} %" if "mfu" in told else "",
        f"{told['memory_gb']:.1f} GB" if "memory_gb" in told else "",
    ]


def log_path(root: Path, cell: Cell) -> Path | None:
    """What the latest attempt at a cell printed: in its artifact, or else in its work folder."""
    committed = folder(root, cell) / record.LOG
    if committed.is_file():
        return committed
    attempts = (root / "work" / cell.fingerprint[:SHORT]).glob("log.*.txt")
    return max(attempts, key=lambda path: int(path.name.split(".")[1]), default=None)


class Teller:
    """News for a terminal that cannot redraw: a line when a cell changes state, and progress every ten seconds."""

    def __init__(self) -> None:
        self.known: dict[str, CellState] = {}
        self.told = time.monotonic()

    def news(self, status: Status) -> list[str]:
        """What is new since the last call."""
        counts = Counter(state.state for state in status.states.values())
        lines = []
        for cell in {cell.fingerprint: cell for cell in status.cells}.values():
            state = status.states[cell.fingerprint]
            known = self.known.get(cell.fingerprint)
            if (known or NEVER) != state and not (known is None and state.state == "done"):
                reason = f" {state.reason}: {state.message}" if state.reason else ""
                lines.append(f"[{counts['done']}/{len(status.states)}] {state.state:8} {cell.name}{reason}")
        self.known = dict(status.states)
        if time.monotonic() - self.told > 10:
            self.told = time.monotonic()
            for cell in status.in_state("running"):
                words = progress_words(status.progress.get(cell.fingerprint) or {})
                lines.append(f"        {cell.name}: {', '.join(word for word in words if word)}")
        return lines
