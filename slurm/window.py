"""The rolling window: what can be made again is dropped once it has served, and nothing is begun that would not fit.

A disk budget counts the transient artifacts of a root (`TRANSIENT` in their jobs: downloads, conversions). An opener is
a cell that begins a chain of them. With it belongs its lineage: what is made from it, and what else the readers of all
that need. A worker starts an opener only in a lineage that was opened, and opens one only while what is there, what
the open ones will still make and what the new one will make fit the budget together. Sizes are those that records of
the same stage tell; until they are known, one lineage is open at a time.

Openings are files `<launch>-window/<n>`, made by link(2): each was decided on knowing all before it, so two workers
cannot both take the last room.
"""

import os
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slurm import submissions
from slurm.board import Board, is_transient
from slurm.profiles import DiskBudget
from toolkit.failures import UpstreamDamaged
from toolkit.fingerprint import SHORT
from toolkit.manifest import bases, dropping, index, record
from toolkit.manifest.dropping import Size
from toolkit.plan import folder, needed_again
from toolkit.spec import build
from toolkit.study import Cell

LOOK_SECONDS = 0.5  # between two looks at a disk that had no room


class Held:
    """The transient artifacts of a root that are there; call it for their first 12 digits and sizes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.known: dict[str, Size] = {}

    def __call__(self) -> dict[str, Size]:
        found = {}
        for job, names in index.committed(self.root).items():
            for short, name in names.items() if is_transient(job) else ():
                if not record.is_dropped(self.root / "artifacts" / job / name):
                    found[short] = self.size(self.root / "artifacts" / job / name)
        return found

    def size(self, place: Path) -> Size:
        """Of an artifact, dropped or not, by its record."""
        if place.name not in self.known:
            try:
                self.known[place.name] = dropping.size(record.read(place))
            except UpstreamDamaged:  # `verify` tells of it; what counts here is what lies there
                files = [path.stat().st_size for path in place.rglob("*") if path.is_file()]
                return Size(sum(files), len(files) + 1)
        return self.known[place.name]


def total(sizes: Iterable[Size]) -> Size:
    """Their sum."""
    found = Size()
    for size in sizes:
        found = found.plus(size)
    return found


@dataclass(frozen=True, kw_only=True)
class Use:
    """What transient artifacts take of a disk budget."""

    used: Size
    budget: DiskBudget

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {**self.used._asdict(), "budget": vars(self.budget)}


def use(root: Path, study: str) -> Use | None:
    """For a study whose latest launch has a disk budget."""
    numbers = submissions.numbers(root, study)
    words = submissions.read(root, study, numbers[-1]).get("profile", {}).get("disk_budget") if numbers else None
    return Use(used=total(Held(root)().values()), budget=build(DiskBudget, words)) if words else None


@dataclass(frozen=True, kw_only=True)
class _Look:
    """held: what is there (first 12 digits -> size). begun: what is still to be made of lineages that are open."""

    held: Mapping[str, Size]
    begun: set[str]


class Window:
    """What a worker with a disk budget may begin, and what it drops; `who` is the worker, for the markers."""

    def __init__(
        self, root: Path, study: str, launch: int, board: Board, budget: DiskBudget, who: Mapping[str, Any]
    ) -> None:
        self.root, self.study, self.launch, self.board = root, study, launch, board
        self.budget, self.who = budget, who
        self.cells = {print_: cell for print_, cell in board.cells.items() if is_transient(cell.job)}
        self.units = lineages(board.cells, self.cells, board.readers)
        self.inside: dict[str, list[str]] = {}  # cell -> the openers of the lineages that it is in
        for opener, unit in self.units.items():
            for print_ in unit:
                self.inside.setdefault(print_, []).append(opener)
        self.held = Held(root)
        self.opened: list[str] = []
        self.stages: dict[str, Size] = {}  # the largest that is known of each
        self.learned: set[str] = set()
        self.gone: set[str] = set()  # dropped, as far as this worker knows
        self.impossible = ""  # why nothing can go on any more, whatever the others do
        self.seen: tuple[float, Any, _Look] | None = None
        self.others: dict[tuple[str, int], list[Cell]] = {}  # launch of another study -> its cells

    def room(self, cell: Cell) -> bool:
        """Whether a cell may be started, as far as the disk goes; opens a lineage for it where there is room."""
        print_ = cell.fingerprint
        if print_ not in self.units or self._is_open(print_):
            return True
        self._read_openings()
        if self._is_open(print_):
            return True
        look = self._look()
        least, *_ = openers = self._lineages_of(print_, look.held)
        for opener in openers:
            pending = self._pending(opener, look.held)
            others = look.begun - pending
            sizes = [self._size(p) for p in others | pending]
            whole = total([*look.held.values(), *filter(None, sizes)])
            # Of unknown size, only the least, and alone: what a larger one shares with those that are open hides them.
            blind = None in sizes and (bool(others) or opener != least)
            if self.budget.fits(whole) and not blind:
                self.impossible = ""
                return self._open(opener)
        # What runs is still among the ready. If all that is wants room, none will come.
        if all(p in self.units and not self._is_open(p) for p in self.board.ready):
            self.impossible = self._why(least, look.held)
        return False

    def _look(self) -> "_Look":
        """What is there and begun. The board is asked first: what it takes for done is on the disk by now."""
        known = (len(self.opened), len(self.board.hopeful))
        if self.seen and self.seen[1] == known and time.monotonic() - self.seen[0] < LOOK_SECONDS:
            return self.seen[2]
        self.sweep()
        self._learn()
        held = self.held()
        openers = set(self.opened)
        for print_ in self.cells:  # of an earlier launch: what is there and will be read needs the rest of its lineage
            if print_[:SHORT] in held and self._has_readers(print_) and not self._is_open(print_):
                openers.add(self._lineages_of(print_, held)[0])
        look = _Look(held=held, begun={p for opener in openers for p in self._pending(opener, held)})
        self.seen = (time.monotonic(), known, look)
        return look

    def _is_open(self, print_: str) -> bool:
        return any(print_ in self.units[opener] for opener in self.opened)

    def _lineages_of(self, print_: str, held: Mapping[str, Size]) -> list[str]:
        """The openers of the lineages that a cell is in; the one first that has least to make."""
        return sorted(self.inside[print_], key=lambda o: (len(self._pending(o, held)), self.board.order[o]))

    def _pending(self, opener: str, held: Mapping[str, Size]) -> set[str]:
        """Of a lineage, what is still to be made."""
        return {p for p in self.units[opener] if p in self.board.hopeful and p[:SHORT] not in held}

    def _has_readers(self, print_: str) -> bool:
        return any(reader in self.board.hopeful for reader in self.board.readers.get(print_, ()))

    def _why(self, opener: str, held: Mapping[str, Size]) -> str:
        pending = sorted(self._pending(opener, held), key=self.board.order.__getitem__)
        names = ", ".join(f"{self.cells[p].name} {show(self._size(p))}" for p in pending[:6])
        more = f" and {len(pending) - 6} more" if len(pending) > 6 else ""
        need = total([size for p in pending if (size := self._size(p))])
        there = f" beside the {show(total(held.values()))} that stay until then" if held else ""
        return (
            f"the disk budget is {self.budget}, which is too small: {names}{more} must be there at once and need"
            f" {show(need)}{there}; give more, with --disk-budget or `disk_budget` in the profile"
        )

    def _size(self, print_: str) -> Size | None:
        return self.stages.get(self.cells[print_].stage)

    def _learn(self) -> None:
        for print_ in self.cells.keys() - self.learned:
            cell = self.cells[print_]
            place = folder(self.root, cell)
            if (print_ not in self.board.hopeful or print_ in self.board.again) and place.is_dir():
                known, size = self.stages.get(cell.stage, Size()), self.held.size(place)
                self.stages[cell.stage] = Size(max(known.bytes, size.bytes), max(known.inodes, size.inodes))
                self.learned.add(print_)

    def _read_openings(self) -> None:
        while True:
            try:
                self.opened.append((self._place() / str(len(self.opened) + 1)).read_text())
            except FileNotFoundError:
                return

    def _open(self, opener: str) -> bool:
        """Take the next opening; False if another worker was quicker, whose choice changes the sums."""
        place = self._place()
        place.mkdir(parents=True, exist_ok=True)
        part = place / f".{uuid.uuid4().hex}"
        part.write_text(opener)
        try:
            os.link(part, place / str(len(self.opened) + 1))
        except FileExistsError:
            record.refresh(place)
            return False
        finally:
            part.unlink()
        self.opened.append(opener)
        return True

    def _place(self) -> Path:
        return submissions.folder(self.root, self.study) / f"{self.launch}-window"

    def sweep(self) -> None:
        """Drop everything that has served this launch, and that nobody else needs or wants kept."""
        self.gone -= self.board.hopeful
        served = [cell for print_, cell in self.cells.items() if self._has_served(print_)]
        elsewhere = self._needed_elsewhere() if served else set()
        needed = bases.needed(self.root) if served else set()  # to read what is stored as a change to them
        for cell in served:
            place = folder(self.root, cell)
            if record.is_dropped(place):
                dropping.finish(place, self.board.rules.alive)
                self.gone.add(cell.fingerprint)
            elif cell.fingerprint not in elsewhere and cell.fingerprint[:SHORT] not in needed and place.is_dir():
                if dropping.drop(self.root, place, cell.fingerprint, self.who):
                    self.gone.add(cell.fingerprint)

    def _has_served(self, print_: str) -> bool:
        """It has readers, none of which may still come. What has none is a result."""
        readers = self.board.readers.get(print_)
        there = print_ not in self.gone and print_ not in self.board.hopeful
        return there and bool(readers) and not self._has_readers(print_)

    def _needed_elsewhere(self) -> set[str]:
        """What the latest launches of all studies, but for this launch, read in cells that are not done, or end in."""
        committed = index.committed(self.root)
        found: set[str] = set()
        for path in (self.root / "submissions").glob("*"):
            numbers = submissions.numbers(self.root, path.name)
            key = (path.name, numbers[-1] if numbers else 0)
            if not numbers or key == (self.study, self.launch) or path.name.endswith(submissions.PREFETCH):
                continue  # what was fetched ahead was fetched to be read
            try:
                self.others[key] = self.others.get(key) or submissions.cells(self.root, *key)
            except ValueError:  # a folder that it points to is gone, say: what it needs is unknown
                return set(self.cells)
            found |= self._needs_of(self.others[key], committed)
        return found

    def _needs_of(self, cells: Sequence[Cell], committed: Mapping[str, Mapping[str, str]]) -> set[str]:
        again = needed_again(self.root, cells, committed)
        read = {c.fingerprint for cell in cells for c in cell.inputs.values()}
        undone = [c for c in cells if c.fingerprint[:SHORT] not in committed.get(c.job, ()) or c.fingerprint in again]
        needed = {c.fingerprint for cell in undone for c in cell.inputs.values()}
        return needed | {cell.fingerprint for cell in cells if cell.fingerprint not in read}


def lineages(
    cells: Mapping[str, Cell], transient: Mapping[str, Cell], readers: Mapping[str, Sequence[str]]
) -> dict[str, set[str]]:
    """Opener -> its lineage: what is transient of all that is made from it and of all that their readers are made from.

    So whatever is opened can be finished, and its room comes back: a reader that waits for what no open lineage makes
    would wait for ever.
    """
    above: dict[str, set[str]] = {}  # all transient ancestors
    made_from: dict[str, set[str]] = {}  # the chain itself: ancestors without a gap
    for print_, cell in cells.items():
        inputs = [c.fingerprint for c in cell.inputs.values()]
        above[print_] = {p for i in inputs for p in above[i]} | {i for i in inputs if i in transient}
        made_from[print_] = {p for i in inputs if i in transient for p in (*made_from[i], i)}
    openers = [print_ for print_ in transient if not made_from[print_]]
    found: dict[str, set[str]] = {opener: {opener} for opener in openers}
    for print_ in transient:
        for opener in made_from[print_] & found.keys():
            found[opener].add(print_)
    for unit in found.values():
        unit |= {p for member in [*unit] for reader in readers.get(member, ()) for p in above[reader]}
    return found


def show(size: Size | None) -> str:
    """`14.2 GB, 12 inodes`."""
    if size is None:
        return "of unknown size"
    value, unit = float(size.bytes), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.{0 if unit == 'B' else 1}f} {unit} in {size.inodes} inodes"
