"""Are the cells that a study compares trained on the same rows in the same order, from the same seed?

Data order and initialisation are functions of `seed`, of the data and of how it is cut into batches, so that they are
the same across checkpoints and methods unless a study says otherwise. A study says so with an axis of the field's name
(`seed: [0, 1, 2]`); where two cells that stand beside each other in a table differ without such an axis, `plan` warns.
Trainings that one stage takes through different inputs (the reward models of an ensemble) play different parts and are
not held against each other.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from toolkit.study import Cell

ORDER = "the order of the data"
FIELDS = {  # of a training's spec, and what differs with them
    "seed": f"{ORDER} and the initialisation",
    "global_batch": "which rows meet in a step",
    "split": "the rows",
    "max_length": "what is cut off the rows",
    "packing": ORDER,
    "template": "the texts",
}
JOB = "train"
Part = tuple[tuple[str, str], ...]  # what a training is to a cell: the stages between them, with the input of each


def unpaired(cells: Sequence[Cell]) -> dict[str, list[str]]:
    """Stage -> warnings: along one axis of a stage that nothing reads, cells whose trainings are not paired."""
    read = {id(upstream) for cell in cells for upstream in cell.inputs.values()}
    stages: defaultdict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        if id(cell) not in read:
            stages[cell.stage].append(cell)
    known: dict[int, dict[Part, Cell]] = {}
    found = {}
    for stage, mine in stages.items():
        lines: dict[tuple[str, str], list[str]] = {}
        for axis, one, other in _neighbours(mine, known):
            for field, difference in _differences(one, other, known):
                pair = f"{axis}={one.coords[axis]} and {axis}={other.coords[axis]}: {difference}"
                lines.setdefault((axis, field), []).append(pair)
        if lines:
            found[stage] = [_say(stage, field, pairs) for (_, field), pairs in lines.items()]
    return found


def _say(stage: str, field: str, pairs: list[str]) -> str:
    more = f" (and {len(pairs) - 1} more such pairs)" if len(pairs) > 1 else ""
    what = FIELDS.get(field, "the rows")
    return f"{stage} compares {pairs[0]}{more}; so {what} may differ too: give both the same, or make {field} an axis"


def _neighbours(cells: list[Cell], known: dict[int, dict[Part, Cell]]) -> Iterator[tuple[str, Cell, Cell]]:
    """(axis, first, other): cells that differ on one axis only; none where all are trained alike, as is usual."""
    if len({_signature(t) for cell in cells for t in _trainings(cell, known).values()}) < 2:
        return
    for axis in dict.fromkeys(axis for cell in cells for axis in cell.coords):
        groups: dict[tuple[Any, ...], Cell] = {}
        for cell in cells:
            if axis in cell.coords:
                rest = tuple((key, value) for key, value in cell.coords.items() if key != axis)
                first = groups.setdefault(rest, cell)
                if first is not cell:
                    yield axis, first, cell


def _differences(one: Cell, other: Cell, known: dict[int, dict[Part, Cell]]) -> Iterator[tuple[str, str]]:
    """Fields in which the nearest trainings of two cells differ, if they play one part and read data of one stage."""
    axes = {*one.coords, *other.coords}
    for part, ours in _trainings(one, known).items():
        for role, theirs in _trainings(other, known).items():
            data, same = ours.inputs.get("data"), theirs.inputs.get("data")
            if ours is theirs or data is None or same is None or data.stage != same.stage or _apart(part, role):
                continue
            for field in FIELDS:
                a, b = ours.spec.get(field), theirs.spec.get(field)
                if a != b and field not in axes:
                    yield field, f"{ours.name} has {field} {_show(a)} and {theirs.name} {_show(b)}"
            if data.fingerprint != same.fingerprint and not any(
                axis in axes for axis in {**data.coords, **same.coords}
            ):
                yield "data", f"{ours.name} reads {data.name} and {theirs.name} {same.name}"


def _apart(one: Part, other: Part) -> bool:
    """Whether the ways to two trainings leave one stage through different inputs. Ways through different stages (a
    model and what it was merged to) are of one part."""
    return any(stage == same and name != another for (stage, name), (same, another) in zip(one, other, strict=False))


def _trainings(cell: Cell, known: dict[int, dict[Part, Cell]]) -> dict[Part, Cell]:
    """The nearest trainings that a cell was made from, by what they are to it."""
    if id(cell) not in known:
        mine: dict[Part, Cell] = {}
        for name, upstream in cell.inputs.items():
            nearest = {(): upstream} if upstream.job == JOB else _trainings(upstream, known)
            mine |= {((cell.stage, name), *way): training for way, training in nearest.items()}
        known[id(cell)] = mine
    return known[id(cell)]


def _signature(training: Cell) -> tuple[Any, ...]:
    data = training.inputs.get("data")
    return (data.fingerprint if data else "", *(str(training.spec.get(field)) for field in FIELDS))


def _show(value: Any) -> str:
    return "its default" if value is None else str(value)
