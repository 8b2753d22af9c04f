"""`tidemark plan --cost`: what the rest of a study will cost on a cluster. A cell holds the shape that the profile
gives it for as long as its kin under the root took; start-up and waiting come on top.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from slurm import profiles, spent
from slurm.estimates import Estimate, Estimates
from slurm.profiles import Fit
from slurm.spent import Cost
from slurm.terminal import Opened, out, print_json
from slurm.usage import numbers
from toolkit.fingerprint import SHORT
from toolkit.plan import CellState
from toolkit.stage import read_progress
from toolkit.study import Cell

PROGRESS, UNKNOWN = "progress", "unknown"
WORDS = {
    "size": "same size", "stage": "same stage", "job": "same job", PROGRESS: "its progress", UNKNOWN: UNKNOWN
}  # fmt: skip


@dataclass(kw_only=True)
class Rest:
    """What is left of a stage. each: hours that whole cells are estimated to take, where that is known. like: what they
    were estimated from (a key of WORDS) -> how many cells."""

    shapes: list[str] = field(default_factory=list)
    each: list[float] = field(default_factory=list)
    like: Counter[str] = field(default_factory=Counter)
    cost: Cost = field(default_factory=Cost)

    def as_json(self) -> dict[str, Any]:
        """For `--json`; `hours_each` are the least and the most."""
        each = [min(self.each), max(self.each)] if self.each else None
        return {"shapes": self.shapes, "like": dict(self.like), "hours_each": each, **_cost(self.cost, self.like)}


def show(opened: Opened, cluster: str, states: Mapping[str, CellState], as_json: bool) -> None:
    """Print what is left of a study, and what that will cost on a cluster.

    Raises:
        StudyError: there is no such cluster, or none of its shapes is enough for a stage.
    """
    profile, _ = profiles.load(cluster)
    fits = profiles.fits(profile, opened.cells, opened.study)
    left = {c.fingerprint: c for c in opened.cells if c.fingerprint in fits and states[c.fingerprint].state != "done"}
    rest = forecast(left.values(), fits, Estimates().read(opened.root), opened.root)
    cost = spent.total(stage.cost for stage in rest.values())
    like = sum((stage.like for stage in rest.values()), Counter[str]())
    if as_json:
        stages = {name: stage.as_json() for name, stage in rest.items()}
        print_json({"cluster": cluster, "stages": stages, "total": _cost(cost, like)})
    else:
        out.print(_render(rest, cost, like))


def forecast(cells: Iterable[Cell], fits: Mapping[str, Fit], estimates: Estimates, root: Path) -> dict[str, Rest]:
    """Stage -> what is left of it."""
    found: dict[str, Rest] = {}
    for cell in cells:
        fit = fits[cell.fingerprint]
        rest = found.setdefault(cell.stage, Rest())
        rest.shapes += [] if fit.name in rest.shapes else [fit.name]
        like, whole, part = _estimate(
            estimates.of(cell), read_progress(root / "work" / cell.fingerprint[:SHORT] / "state")
        )
        rest.like[like] += 1
        rest.each += [] if like == UNKNOWN else [whole / 3600]
        rest.cost.add(spent.size_of(fit.shape), round(1000 * whole * part), attempts=1)
    return found


def _estimate(known: Estimate | None, told: Mapping[str, Any]) -> tuple[str, float, float]:
    """From what, seconds of the whole cell, and the part of it that is left: of one that somebody has begun, what was
    not yet reached. If nothing of its kind was ever done, it knows best itself."""
    part = 1 - told["step"] / told["total"] if told.get("total") else 1.0
    if known is not None:
        return known.like, known.seconds, part
    if part > 0 and told.get("eta_seconds") is not None:
        return PROGRESS, told["eta_seconds"] / part, part
    return UNKNOWN, 0.0, part


def _cost(cost: Cost, like: Counter[str]) -> dict[str, Any]:
    words = cost.as_json()
    return {"left": words.pop("attempts"), "unknown": like[UNKNOWN], **words}


def _render(rest: Mapping[str, Rest], cost: Cost, like: Counter[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("stage", "shape"):
        table.add_column(name)
    for name in ("left", "hours each"):
        table.add_column(name, justify="right")
    table.add_column("from")
    for name in ("GPU-hours", "CPU-hours", "node-hours"):
        table.add_column(name, justify="right")
    for name, stage in rest.items():
        table.add_row(escape(name), ", ".join(stage.shapes), *_row(stage))
    least = "at least" if like[UNKNOWN] else ""
    count, *hours = numbers(cost)
    table.add_row("total", "", count, "", least, *hours, style="bold")
    return table


def _row(stage: Rest) -> list[str]:
    low, high = (f"{pick(stage.each):,.3f}" if stage.each else UNKNOWN for pick in (min, max))
    like = [f"{WORDS[word]}{f' ({stage.like[word]})' if len(stage.like) > 1 else ''}" for word in stage.like]
    count, *hours = numbers(stage.cost)
    return [count, low if low == high else f"{low} - {high}", ", ".join(like), *hours]
