"""Where the numbers of a study come from: code, libraries, machines, seeds, adopted files, the time of each stage."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.manifest.record import RECORD
from toolkit.plan import CellState
from toolkit.study import Cell

MACHINE = ("host", "cpus", "gpus", "SLURM_JOB_PARTITION")  # of the provenance of a record; nothing else is shown
ALL_OF_IT = (*MACHINE, "SLURM_JOB_ID", "SLURM_ARRAY_TASK_ID")


@dataclass(kw_only=True)
class StageTime:
    """Seconds that the done cells of a stage took, their last attempts alone; `restarts` counts the attempts before."""

    stage: str
    job: str
    done: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    restarts: int = 0


@dataclass(kw_only=True)
class Origin:
    """Values with the number of cells that have them: several values for one name show a study made by unequal code."""

    stages: dict[str, StageTime] = field(default_factory=dict)
    commits: Counter[str] = field(default_factory=Counter)
    code: Counter[str] = field(default_factory=Counter)
    packages: dict[str, Counter[str]] = field(default_factory=dict)
    machines: Counter[str] = field(default_factory=Counter)
    seeds: dict[str, list[str]] = field(default_factory=dict)
    adopted: list[tuple[str, str, str]] = field(default_factory=list)
    seconds: float = 0.0
    gpu_seconds: float = 0.0


def origin(cells: Sequence[Cell], states: Mapping[str, CellState], folders: Mapping[str, Path]) -> Origin:
    """Read the records of the done cells. One that cannot be seen is left out: the table says so (FS_VISIBILITY)."""
    found = Origin()
    for cell in cells:
        time = found.stages.setdefault(cell.stage, StageTime(stage=cell.stage, job=cell.job))
        for place, seed in _seeds(cell.spec, "spec"):
            found.seeds.setdefault(f"{cell.stage} {place}", [])
            if seed not in found.seeds[f"{cell.stage} {place}"]:
                found.seeds[f"{cell.stage} {place}"].append(seed)
        if states[cell.fingerprint].state != "done":
            continue
        try:
            record = json.loads((folders[cell.fingerprint] / RECORD).read_bytes())
        except FileNotFoundError:  # hazard: network file systems show a folder before its files
            continue
        time.done += 1
        if "source" in record:
            found.adopted.append((cell.name, record["source"], cell.fingerprint[:12]))
        else:
            _add(found, time, record.get("provenance", {}))
    return found


def _seeds(spec: Any, place: str) -> Iterator[tuple[str, str]]:
    """(place, value) of every field of a spec, at any depth, whose name ends in `seed`."""
    for key, value in spec.items() if isinstance(spec, Mapping) else ():
        if str(key).endswith("seed") and not isinstance(value, Mapping):
            yield f"{place}.{key}", str(value)
        yield from _seeds(value, f"{place}.{key}")


def _add(found: Origin, time: StageTime, provenance: Mapping[str, Any]) -> None:
    machine, identity = provenance.get("machine", {}), provenance.get("identity", {})
    seconds = float(provenance.get("seconds", 0.0))
    time.seconds += seconds
    time.slowest = max(time.slowest, seconds)
    time.restarts += max(int(provenance.get("attempt", 1)) - 1, 0)
    found.gpu_seconds += seconds * _gpus(machine)
    found.seconds += seconds
    found.commits[str(machine.get("commit", "unknown"))] += 1
    found.code[str(identity.get("code", "unknown"))] += 1
    for name, version in {"python": identity.get("python"), **identity.get("packages", {})}.items():
        if version:
            found.packages.setdefault(name, Counter())[str(version)] += 1
    found.machines[machine_text(machine, MACHINE)] += 1


def machine_text(machine: Mapping[str, Any], names: Sequence[str] = ALL_OF_IT) -> str:
    """`host node01, cpus 64, gpus 4 x NVIDIA H100`: those of `names` that the provenance of a record has."""
    shown = {name: machine[name] for name in names if machine.get(name)}
    if isinstance(shown.get("gpus"), list):
        kinds = Counter(map(str, shown["gpus"]))
        shown["gpus"] = " + ".join(f"{count} x {kind}" for kind, count in kinds.items())
    return ", ".join(f"{name} {value}" for name, value in shown.items()) or "unknown"


def _gpus(machine: Mapping[str, Any]) -> int:
    """How many devices a cell had: `gpus` is their number or a list of names."""
    gpus = machine.get("gpus") or 0
    return gpus if isinstance(gpus, int) else len(gpus)


def duration(seconds: float) -> str:
    """`0.4 s`, `12 min 5 s`, `3 h 20 min`, `2 d 4 h`: two units at most."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    rest, parts = round(seconds), []
    for name, size in units:
        count, rest = divmod(rest, size)
        parts.append((count, name))
    first = next(i for i, (count, _) in enumerate(parts) if count)
    return " ".join(f"{count} {name}" for count, name in parts[first : first + 2] if count)
