"""The paired comparisons that the report shows: along each axis of an evaluating stage, everything else being equal.

The base against what was made from it, the first value of another axis against each other one, a checkpoint against the
one before it; and for seeds, which are no alternatives, the spread between them apart from sampling error. All p-values
of a page are one family for Holm's correction.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from toolkit.analysis import items
from toolkit.analysis.gaps import show
from toolkit.analysis.paired import Comparison, compare
from toolkit.analysis.rows import harness
from toolkit.analysis.seeds import Spread, spread
from toolkit.analysis.stats import holm
from toolkit.manifest import record
from toolkit.study import Cell

MOST, ITEMS = 400, 400_000  # comparisons of a page, and items in all of them together
BOOTSTRAP = 20  # what an item costs that is not right or wrong, against one that is


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two cells that differ in `axis` alone; `place` is what they share."""

    axis: str
    one: Cell
    two: Cell
    place: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison with its p-value adjusted over all of them."""

    pair: Pair
    task: str
    metric: str
    found: Comparison
    p_holm: float

    @property
    def verdict(self) -> str:
        return self.found.verdict(p=self.p_holm)


@dataclass(frozen=True, kw_only=True)
class Compared:
    """`rows`, how many comparisons are left out, and why some could not be made."""

    rows: Sequence[Row]
    left_out: int
    notes: Sequence[str]


def pairs(
    cells: Sequence[Cell], folders: Mapping[str, Path], base: tuple[str, str] | None, over: str | None
) -> list[Pair]:
    """Of all evaluated cells that keep items. `base`: the axis and the value that others are held against; `over`: the
    axis of checkpoints."""
    found: dict[str, list[Pair]] = {}
    for members in _stages(cells, folders).values():
        axes = list(dict.fromkeys(axis for cell in members for axis in cell.coords if axis != "seed"))
        for axis in axes:
            for group in _alike(members, axis).values():
                chosen = _before(group) if axis == over else _against(group, axis, base)
                found.setdefault(axis, []).extend(
                    Pair(axis=axis, one=one, two=two, place=_place(one, axis)) for one, two in chosen
                )
    first = [base[0]] if base else []
    order = sorted(found, key=lambda axis: (axis not in first, axis == over))
    return [pair for axis in order for pair in found[axis]]


def _stages(cells: Sequence[Cell], folders: Mapping[str, Path]) -> dict[str, list[Cell]]:
    stages: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.fingerprint in folders and (folders[cell.fingerprint] / "items.parquet").is_file():
            stages.setdefault(cell.stage, []).append(cell)
    return stages


def _alike(cells: Sequence[Cell], axis: str) -> dict[tuple[Any, ...], list[Cell]]:
    """Cells that agree on every other axis."""
    groups: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells:
        if axis in cell.coords:
            key = tuple(sorted((name, str(at)) for name, at in cell.coords.items() if name != axis))
            groups.setdefault(key, []).append(cell)
    return groups


def _before(group: Sequence[Cell]) -> Iterator[tuple[Cell, Cell]]:
    return zip(group, group[1:])


def _against(group: Sequence[Cell], axis: str, base: tuple[str, str] | None) -> Iterator[tuple[Cell, Cell]]:
    below = [cell for cell in group if (axis, str(cell.coords[axis])) == base]
    first = below[0] if below else group[0]
    return ((first, cell) for cell in group if cell is not first)


def _place(cell: Cell, axis: str) -> str:
    inside = ", ".join(f"{name} {show(at)}" for name, at in cell.coords.items() if name != axis)
    return f"{cell.stage}: {inside}" if inside else cell.stage


def comparisons(wanted: Sequence[Pair], folders: Mapping[str, Path]) -> Compared:
    """Every task that both cells of a pair have items of: right or wrong answers, or else the first shared metric."""
    read = lru_cache(maxsize=64)(lambda path: items.read_all(path))
    done: list[tuple[Pair, str, str, Comparison]] = []
    notes: dict[str, None] = {}
    spent = 0
    for number, pair in enumerate(wanted):
        paths = [folders[cell.fingerprint] for cell in (pair.one, pair.two)]
        words = [harness(record.read(path)) for path in paths]
        if words[0] != words[1]:
            notes[f"{pair.place}: scored by {words[0]} and by {words[1]}, which do not compare"] = None
            continue
        if len(done) >= MOST or spent >= ITEMS:
            return _adjusted(done, len(wanted) - number, notes)
        for task, tables in items.parts([read(path) for path in paths]).items():
            try:
                sides = items.pair(*tables)
                found = compare(sides.first, sides.second, metric=sides.metric)
            except ValueError as error:  # a pair that is none is told, and the others are shown
                notes[f"{pair.place}, {task}: {error}"] = None
                continue
            spent += found.n * (1 if found.only_first is not None else BOOTSTRAP)
            done.append((pair, task, sides.metric, found))
    return _adjusted(done, 0, notes)


def _adjusted(done: Sequence[tuple[Pair, str, str, Comparison]], left_out: int, notes: Mapping[str, None]) -> Compared:
    adjusted = holm([found.p for *_, found in done])
    rows = [
        Row(pair=pair, task=task, metric=metric, found=found, p_holm=float(p))
        for (pair, task, metric, found), p in zip(done, adjusted)
    ]
    return Compared(rows=rows, left_out=left_out, notes=list(notes)[:20])


@dataclass(frozen=True, kw_only=True)
class Seeds:
    """The spread between the seeds of one place of a stage."""

    place: str
    task: str
    metric: str
    found: Spread


def seed_spreads(cells: Sequence[Cell], folders: Mapping[str, Path]) -> tuple[list[Seeds], list[str]]:
    """For cells that differ in `seed` alone; at most `MOST`. And why others have none: a seed of the data itself, say,
    asks other questions."""
    found: list[Seeds] = []
    notes: dict[str, None] = {}
    for members in _stages(cells, folders).values():
        for group in _alike(members, "seed").values():
            if len(group) < 2 or len(found) >= MOST:
                continue
            place = _place(group[0], "seed")
            for task, tables in items.parts([items.read_all(folders[cell.fingerprint]) for cell in group]).items():
                try:
                    metric = items.pair(tables[0], tables[1]).metric
                    spread_ = spread(items.stack(tables, metric))
                except ValueError as error:
                    notes[f"{place}, {task}: no spread between seeds: {error}"] = None
                    continue
                found.append(Seeds(place=place, task=task, metric=metric, found=spread_))
    return found, list(notes)[:20]
