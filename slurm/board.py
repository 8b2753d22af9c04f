"""What a worker takes next: the cells of a launch, which are done, which failed, which somebody else is at.

A board is one worker's view. It learns of others through their events and of the truth through claims and artifacts:
two workers that both think a cell is free are told apart by link(2).
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.failures import POLICY, Failure
from toolkit.fingerprint import SHORT
from toolkit.manifest import claims, index
from toolkit.manifest.log import Reader
from toolkit.plan import folder, remaining
from toolkit.study import Cell


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A claimed try at a cell; `lost` is the attempt before it if that one ended without a word."""

    cell: Cell
    number: int
    lost: int | None


class Board:
    """The cells of launch `launch` of a study, as one worker sees them."""

    def __init__(self, root: Path, study: str, launch: int, cells: Sequence[Cell]) -> None:
        self.root, self.launch = root, launch
        self.cells = {cell.fingerprint: cell for cell in cells}
        self.rank = remaining(cells)
        self.order = {print_: i for i, print_ in enumerate(self.cells)}
        self.waits_for = {p: {c.fingerprint for c in cell.inputs.values()} for p, cell in self.cells.items()}
        self.feeds: defaultdict[str, list[str]] = defaultdict(list)
        for print_, inputs in self.waits_for.items():
            for upstream in inputs:
                self.feeds[upstream].append(print_)
        self.ready = {print_ for print_, inputs in self.waits_for.items() if not inputs}
        self.ended: dict[str, int] = {}  # the last attempt that is known to have ended
        self.failures: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.claimed = claims.all_claims(root)
        self.reader = Reader(root, study)
        committed = index.committed(root)
        for print_, cell in self.cells.items():
            if print_[:SHORT] in committed.get(cell.job, ()):
                self.mark_done(print_)
        self.refresh()

    def mark_done(self, print_: str) -> None:
        """A cell's artifact exists: what waited for it may be ready."""
        self.ready.discard(print_)
        for consumer in self.feeds.get(print_, ()):
            self.waits_for[consumer].discard(print_)
            if not self.waits_for[consumer]:
                self.ready.add(consumer)
        self.feeds.pop(print_, None)

    def refresh(self) -> None:
        """Take in what the workers of this study, this one too, wrote since the last call."""
        for event in self.reader.new_events():
            if event.get("fingerprint") in self.cells:
                self.take(event)

    def take(self, event: Mapping[str, Any]) -> None:
        """Take in one event."""
        print_ = event["fingerprint"]
        if event["event"] == "started":
            return
        self.ended[print_] = max(event["attempt"], self.ended.get(print_, 0))
        if event["launch"] != self.launch:
            return  # what an earlier launch committed may have been moved away since: the artifacts tell
        if event["event"] == "committed":
            self.mark_done(print_)
        elif event["event"] in ("failed", "lost"):
            self.failures[print_][event["reason"]] += 1
            if self.gave_up(print_):
                self.ready.discard(print_)

    def gave_up(self, print_: str) -> bool:
        """Whether this launch tries the cell no more: one kind of failure came more often than its policy retries."""
        return any(count > POLICY[Failure(reason)].retry for reason, count in self.failures[print_].items())

    def take_next(self, last: Cell | None, info: Mapping[str, Any]) -> Attempt | None:
        """Claim the cell to run now: what the longest chain hangs on, among equals what reads the last one's output."""
        for print_ in sorted(self.ready, key=lambda p: self._priority(p, last)):
            attempt = self._claim(self.cells[print_], info)
            if attempt is not None:
                return attempt
        return None

    def _priority(self, print_: str, last: Cell | None) -> tuple[int, bool, int]:
        upstream = {c.fingerprint for c in self.cells[print_].inputs.values()}
        warm = last is not None and last.fingerprint in upstream
        return (-self.rank[print_], not warm, self.order[print_])

    def _claim(self, cell: Cell, info: Mapping[str, Any]) -> Attempt | None:
        print_, short = cell.fingerprint, cell.fingerprint[:SHORT]
        while True:
            before = self.claimed.get(short, 0)
            open_ = before > self.ended.get(print_, 0)
            if open_ and claims.liveness(claims.read_claim(self.root, short, before)) is not False:
                return None
            if folder(self.root, cell).is_dir():  # its worker died between the rename and the log line
                self.mark_done(print_)
                return None
            self.claimed[short] = before + 1
            if claims.claim(self.root, print_, before + 1, info):
                return Attempt(cell=cell, number=before + 1, lost=before if open_ else None)

    def others_at_work(self) -> bool:
        """Whether a ready cell is claimed and has not ended: wait for it, or take it over once its worker is dead.

        Liveness is not asked here: a worker that died since `take_next` asked leaves a cell that is to be taken.
        """
        return any(self.claimed.get(p[:SHORT], 0) > self.ended.get(p, 0) for p in self.ready)
