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

from toolkit.fingerprint import SHORT
from toolkit.manifest import record
from toolkit.plan import NEVER, STATES, CellState, Node, folder, survey
from toolkit.stage import read_progress
from toolkit.study import Cell

COLORS = {"done": "green", "running": "cyan", "failed": "red", "blocked": "yellow", "never-run": "dim"}


@dataclass(frozen=True, kw_only=True)
class Status:
    """`progress` holds what running cells last told (`Context.progress`), by fingerprint."""

    study: str
    cells: Sequence[Node]
    states: Mapping[str, CellState]
    progress: Mapping[str, Mapping[str, Any]]

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
                    **({"progress": self.progress.get(cell.fingerprint)} if state == "running" else {}),
                }
                for cell in self.in_state(state)
            ]
            for state in ("running", "failed", "blocked")
        }
        stages = {stage: {state: counts[state] for state in STATES} for stage, counts in self.counts().items()}
        return {"study": self.study, "stages": stages, **listed}


def read(root: Path, study: str, cells: Sequence[Node]) -> Status:
    """The status of a study from what lies under the root."""
    states = survey(root, study, cells)
    running = {print_ for print_, state in states.items() if state.state == "running"}
    return Status(
        study=study,
        cells=cells,
        states=states,
        progress={p: read_progress(root / "work" / p[:SHORT] / "state") for p in running},
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
        table.add_row(Text(cell.name, style="cyan"), *progress_words(told))
    return table


def progress_words(told: Mapping[str, Any]) -> list[str]:
    """`["step 300/1000", "52,310 tokens/s", "ETA 0:32", "loss 2.31"]`."""
    if not told:
        return ["starting", "", "", ""]
    rate = told.get("tokens_per_second")
    seconds = told.get("eta_seconds")
    loss = told.get("loss")
    return [
        f"{told['unit']} {told['step']:,}/{told['total']:,}",
        f"{rate:,.0f} tokens/s" if rate else "",
        f"ETA {int(seconds) // 60}:{int(seconds) % 60:02}" if seconds is not None else "",
        f"loss {loss:.3f}" if loss is not None else "",
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
