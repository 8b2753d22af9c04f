"""What is there and what is to be done: the state of every cell, derived from artifacts, claims and events.

Nothing here is stored. A cell is done when its artifact's folder exists; it runs when its latest claim is unfinished
and its process lives; it failed when its latest attempt says so; it is blocked when something upstream failed.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from toolkit.fingerprint import SHORT
from toolkit.manifest import claims, dropping, index, record
from toolkit.study import Cell

STATES = ("done", "running", "failed", "blocked", "never-run")


@dataclass(frozen=True, kw_only=True, slots=True)
class CellState:
    """`reason` is a failure's type, `message` its sentence; for a blocked cell, which upstream cell failed. `job` is
    the scheduler's number for the job that runs it."""

    state: str
    reason: str = ""
    message: str = ""
    attempt: int = 0
    worker: str = ""
    job: str = ""


DONE = CellState(state="done")
NEVER = CellState(state="never-run")


class Node(Protocol):
    """What a cell must say of itself for its state to be found."""

    @property
    def stage(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def job(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def inputs(self) -> Mapping[str, "Node"]: ...


Alive = Callable[[Mapping[str, Any], float], bool | None]


def _on_this_host(info: Mapping[str, Any], claimed: float) -> bool | None:
    return claims.liveness(info)


def survey(root: Path, study: str, cells: Sequence[Node], alive: Alive = _on_this_host) -> dict[str, CellState]:
    """Fingerprint -> state, for cells that stand after their inputs.

    alive: (claim, when it was made) -> whether its maker lives, or None where nobody knows; by default as this host
    sees.
    """
    committed = index.committed(root)
    events = index.attempts_state(root, study)
    claimed = claims.all_claims(root)
    again = needed_again(root, cells, committed)
    states: dict[str, CellState] = {}
    for cell in cells:
        print_ = cell.fingerprint
        if print_[:SHORT] in committed.get(cell.job, ()) and print_ not in again:
            states[print_] = DONE
            continue
        number = claimed.get(print_[:SHORT], 0)
        begun = number > again.get(print_, 0)  # the attempt that made what was dropped tells nothing of the next
        state = _unfinished(root, print_, number, events.get(print_), alive) if begun else NEVER
        if state is NEVER:
            state = next((s for s in (_blocked_by(c, states) for c in cell.inputs.values()) if s), NEVER)
        states[print_] = state
    return states


def needed_again(
    root: Path, cells: Sequence[Node], committed: Mapping[str, Mapping[str, str]], wanted: Collection[str] = ()
) -> dict[str, int]:
    """Fingerprint -> the attempt that made it, of the artifacts that were dropped and that something not done reads.

    One that only what is done was made from is as good as there, unless it is `wanted` for itself.
    """
    touched = {job for job in committed if dropping.any_of(root, job)}
    if not touched:
        return {}
    known = {cell.fingerprint: cell for cell in cells}
    readers: defaultdict[str, set[str]] = defaultdict(set)
    for cell in cells:
        for upstream in cell.inputs.values():
            readers[upstream.fingerprint].add(cell.fingerprint)
    missing: dict[str, bool] = {}
    found: dict[str, int] = {}

    def is_missing(print_: str) -> bool:
        if print_ not in missing:
            job = known[print_].job
            name = committed.get(job, {}).get(print_[:SHORT])
            place = root / "artifacts" / job / str(name)
            gone = name is not None and job in touched and record.is_dropped(place)
            missing[print_] = name is None or (
                gone and (print_ in wanted or any(is_missing(reader) for reader in readers[print_]))
            )
            if gone and missing[print_]:
                found[print_] = dropping.dropped_attempt(place)
        return missing[print_]

    for print_ in known:
        is_missing(print_)
    return found


def _blocked_by(upstream: Node, states: Mapping[str, CellState]) -> CellState | None:
    above = states[upstream.fingerprint]
    if above.state == "failed":
        return CellState(state="blocked", reason="UPSTREAM", message=f"{upstream.name} failed ({above.reason})")
    return above if above.state == "blocked" else None


def _unfinished(root: Path, print_: str, claimed: int, said: index.Attempt | None, alive: Alive) -> CellState:
    if claimed and (said is None or said.attempt < claimed or said.event == "started"):
        info = claims.read_claim(root, print_[:SHORT], claimed)
        if alive(info, claims.made(root, print_[:SHORT], claimed)) is not False:
            job = str(info.get("slurm", {}).get("job", ""))
            return CellState(state="running", attempt=claimed, worker=str(info.get("worker", "")), job=job)
        return NEVER
    if said is not None and said.event == "failed":
        return CellState(
            state="failed", reason=said.reason, message=said.message, attempt=said.attempt, worker=said.worker
        )
    return NEVER


def folder(root: Path, cell: Cell) -> Path:
    """Where the artifact of a cell is or will be."""
    return record.artifact_folder(root, cell.job, cell.label, cell.fingerprint)


def remaining(cells: Sequence[Cell]) -> dict[str, int]:
    """Fingerprint -> how many cells the longest chain that starts with it has: what holds up most comes first."""
    longest: dict[str, int] = {}
    for cell in reversed(cells):
        mine = longest.setdefault(cell.fingerprint, 1)
        for upstream in cell.inputs.values():
            longest[upstream.fingerprint] = max(longest.get(upstream.fingerprint, 1), mine + 1)
    return longest


@dataclass(kw_only=True)
class StagePlan:
    """One line of `tidemark plan`. `differences` counts how its new and drifted cells differ from cached ones."""

    stage: str
    job: str
    axes: list[str] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    states: Counter[str] = field(default_factory=Counter)
    drifted: int = 0
    differences: Counter[str] = field(default_factory=Counter)


def plan(
    cells: Sequence[Cell],
    states: Mapping[str, CellState],
    records: Mapping[str, index.Summary],
    now: Mapping[str, Any],
) -> list[StagePlan]:
    """Stage by stage, what a launch would do.

    Args:
        records: fingerprint -> summary of every committed artifact under the root (`index.records`).
        now: the identity of this installation (`provenance.identity`); a cell made with another one has drifted.
    """
    near = _Neighbours(records)
    found: dict[str, StagePlan] = {}
    for cell in cells:
        stage = found.setdefault(cell.stage, StagePlan(stage=cell.stage, job=cell.job))
        stage.axes = list(dict.fromkeys([*stage.axes, *cell.coords]))
        stage.inputs = list(dict.fromkeys([*stage.inputs, *(c.stage for c in cell.inputs.values())]))
        state = states[cell.fingerprint].state
        stage.states[state] += 1
        if state != "done":
            stage.differences.update(near.differences(cell))
        elif cell.source is None and cell.fingerprint in records:
            drift = compare(json.loads(records[cell.fingerprint].provenance).get("identity", {}), now)
            stage.drifted += bool(drift)
            stage.differences.update(drift)
    return list(found.values())


class _Neighbours:
    """Finds the cached artifact that a new cell is closest to: same point of the same stage, or else same job."""

    def __init__(self, records: Mapping[str, index.Summary]) -> None:
        self.by_place: dict[str, index.Summary] = {}
        self.by_job: defaultdict[str, list[index.Summary]] = defaultdict(list)
        for made in records.values():
            provenance = json.loads(made.provenance)
            self.by_job[made.job].append(made)
            if "stage" in provenance:
                self.by_place[_place(provenance["stage"], provenance["coords"])] = made

    def differences(self, cell: Cell, most: int = 50) -> list[str]:
        """How the cell differs from its neighbour; [] if no artifact of its job is there. `most` bounds the search."""
        made = self.by_place.get(_place(cell.stage, cell.coords))
        if made is None:
            some = self.by_job[cell.job][:most]
            made = min(some, key=lambda m: len(compare(json.loads(m.spec), cell.spec)), default=None)
        if made is None:
            return []
        were = json.loads(made.inputs)
        changed = [name for name, upstream in cell.inputs.items() if were.get(name) != upstream.fingerprint]
        version = json.loads(made.provenance).get("version", cell.version)
        return (
            compare({"VERSION": version}, {"VERSION": cell.version})
            + compare(json.loads(made.spec), cell.spec)
            + [f"input {name}: another {cell.inputs[name].stage}" for name in changed]
        )


def _place(stage: str, coords: Mapping[str, Any]) -> str:
    return f"{stage} {json.dumps(coords, sort_keys=True)}"


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """`["lr: 1e-05 -> 0.0001"]` for every field that differs; `-` stands for a field at its default."""
    lines = []
    for key in dict.fromkeys([*after, *before]):
        old, new = before.get(key), after.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += [f"{key}.{line}" for line in compare(old, new)]
        elif old != new:
            lines.append(f"{key}: {_show(old)} -> {_show(new)}")
    return lines


def _show(value: Any) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= 40 else text[:37] + "..."
