"""How long a cell will take, from what was committed under the root before: the same stage at the same size, or else
the same job and method. The size of a cell is what the whole numbers of its spec say, seeds aside."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import jobs
from toolkit.manifest import index
from toolkit.study import FOLDER, Cell


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """seconds of all attempts together; `like` says from what: "size" (the same stage and size), "stage" or "job"."""

    seconds: float
    like: str


class Estimates:
    """Seconds by kind of cell, from near to far. `words` are what another one gave: a launch hands on what it knows."""

    def __init__(self, words: Mapping[str, float] | None = None) -> None:
        self.known: defaultdict[str, list[float]] = defaultdict(list)
        for key, seconds in (words or {}).items():
            self.known[key].append(seconds)

    def read(self, root: Path) -> "Estimates":
        """Learn from every artifact under a root."""
        for made in index.records(root)[0].values():
            said = json.loads(made.provenance)
            if "seconds" in said and "stage" in said:
                seconds = said["seconds"] + said.get("seconds_before", 0.0)
                self._learn(_keys(said["stage"], made.job, json.loads(made.spec)), seconds)
        return self

    def learn(self, cell: Cell, seconds: float) -> None:
        """Take in what a cell took."""
        self._learn(_keys(cell.stage, cell.job, cell.spec), seconds)

    def _learn(self, keys: Iterable[str], seconds: float) -> None:
        for key in keys:
            self.known[key].append(seconds)

    def of(self, cell: Cell) -> Estimate | None:
        """The median over the nearest kin that there is; None if nothing of its kind is known."""
        for key, like in zip(_keys(cell.stage, cell.job, cell.spec), ("size", "stage", "job"), strict=True):
            if key in self.known:
                return Estimate(seconds=median(self.known[key]), like=like)
        return None

    def words(self, cells: Iterable[Cell]) -> dict[str, float]:
        """What is known of the kinds of these cells, as plain data."""
        keys = {key for cell in cells for key in _keys(cell.stage, cell.job, cell.spec)}
        return {key: median(self.known[key]) for key in sorted(keys) if key in self.known}


def _keys(stage: str, job: str, spec: Mapping[str, Any]) -> tuple[str, str, str]:
    size = sorted((k, v) for k, v in spec.items() if type(v) is int and "seed" not in k)
    choice = None if job == FOLDER else getattr(jobs.load(job), "CHOICE", None)
    method = spec.get(choice.field) if choice else None
    return json.dumps([stage, job, method, size]), json.dumps([stage, job, method]), json.dumps([job, method])
