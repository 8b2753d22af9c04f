"""What a worker takes next: the cells of a launch, which are done, which failed, which somebody else is at.

A board is one worker's view. It learns of others through their events and of the truth through claims and artifacts:
two workers that both think a cell is free are told apart by link(2).
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jobs
from slurm import queue
from toolkit.failures import POLICY, Failure
from toolkit.fingerprint import SHORT
from toolkit.manifest import claims, dropping, index, record
from toolkit.manifest.log import Reader
from toolkit.plan import folder, needed_again, remaining
from toolkit.study import FOLDER, Cell

Outlook = Literal["", "time", "later", "others"]
SILENT_SECONDS = 900.0  # a worker that nobody can be asked about is believed dead when it has said nothing for so long


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A claimed try at a cell. halvings: how often memory ran out at it before."""

    cell: Cell
    number: int
    halvings: int = 0


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a board leaves to its worker.

    mine: fingerprints of what fits its allocation; home: of what its shape is for. has_time: whether there is enough
    left for a cell. learn: is told what a committed cell took. alive: (claim, when it was made) -> whether its maker
    lives, or None. retry: type -> further attempts, where a person said otherwise than `POLICY`. wanted: to be made
    again if it was dropped, though nothing here reads it.
    """

    mine: Collection[str]
    home: Collection[str]
    has_time: Callable[[Cell], bool] = lambda cell: True
    learn: Callable[[Cell, float], None] = lambda cell, seconds: None
    alive: Callable[[Mapping[str, Any], float], bool | None] = lambda info, made: claims.liveness(info)
    retry: Mapping[str, int] = field(default_factory=dict)
    wanted: Collection[str] = ()

    def most(self, reason: str) -> int:
        """Further attempts after a failure of this type."""
        return self.retry.get(reason, POLICY[Failure(reason)].retry)


def is_transient(job: str) -> bool:
    """Whether what a job makes can be made again from what is upstream or outside of the root, so may be dropped."""
    return job != FOLDER and bool(getattr(jobs.load(job), "TRANSIENT", False))


class Board:
    """The cells of launch `launch` of a study, as one worker sees them; `say` appends an event to its log."""

    def __init__(
        self,
        root: Path,
        study: str,
        launch: int,
        cells: Sequence[Cell],
        rules: Rules,
        say: Callable[[Mapping[str, Any]], object],
        now: Callable[[], float],
    ) -> None:
        self.root, self.launch, self.rules, self.say, self.now = root, launch, rules, say, now
        self.cells = {cell.fingerprint: cell for cell in cells}
        self.rank = remaining(cells)
        self.order = {print_: i for i, print_ in enumerate(self.cells)}
        self.waits_for = {p: {c.fingerprint for c in cell.inputs.values()} for p, cell in self.cells.items()}
        self.feeds: defaultdict[str, list[str]] = defaultdict(list)
        for print_, inputs in self.waits_for.items():
            for upstream in inputs:
                self.feeds[upstream].append(print_)
        self.readers = dict(self.feeds)
        self.ready = {print_ for print_, inputs in self.waits_for.items() if not inputs}
        self.hopeful = set(self.cells)  # what is not done, and may still be
        self.ended: dict[str, int] = {}  # the last attempt that is known to have ended
        self.heard: dict[str, float] = {}  # writer -> when this worker last read something of it
        self.failed: defaultdict[str, dict[int, str]] = defaultdict(dict)  # attempt -> type, of this launch
        self.cancelled: set[str] = set()  # fingerprints that a person cancelled
        self.claimed = claims.all_claims(root)
        self.reader = Reader(root, study)
        self.room: Callable[[Cell], bool] = lambda cell: True  # whether the disk budget allows a cell to start
        self.begun = False
        committed = index.committed(root)
        self.again = needed_again(
            root, cells, committed, rules.wanted
        )  # dropped, to be made by an attempt after this one
        self.ended |= self.again
        for print_, cell in self.cells.items():
            if print_[:SHORT] in committed.get(cell.job, ()) and print_ not in self.again:
                self.mark_done(print_)
        self.refresh()
        self.begun = True

    def mark_done(self, print_: str) -> None:
        """A cell's artifact exists: what waited for it may be ready."""
        self.ready.discard(print_)
        self.hopeful.discard(print_)
        for consumer in self.feeds.pop(print_, ()):
            self.waits_for[consumer].discard(print_)
            if not self.waits_for[consumer] and consumer in self.hopeful:
                self.ready.add(consumer)

    def give_up(self, print_: str) -> None:
        """This launch tries a cell no more, nor what is made from it."""
        self.ready.discard(print_)
        waiting = [print_]
        while waiting:
            lost = waiting.pop()
            if lost in self.hopeful:
                self.hopeful.discard(lost)
                waiting += self.feeds.get(lost, ())

    def refresh(self) -> None:
        """Take in what the workers of this study, this one too, wrote since the last call."""
        for event in self.reader.new_events():
            self.heard[event["writer"]] = self.now()
            if event.get("fingerprint") in self.cells:
                self.take(event)

    def cancel(self, fingerprints: Collection[str]) -> None:
        """A person wants these cells no more, of this launch."""
        for print_ in set(fingerprints) & self.cells.keys() - self.cancelled:
            self.cancelled.add(print_)
            self.give_up(print_)

    def take(self, event: Mapping[str, Any]) -> None:
        """Take in one event of a cell."""
        print_ = event["fingerprint"]
        if event["event"] == "started":
            return
        self.ended[print_] = max(event["attempt"], self.ended.get(print_, 0))
        if event["event"] == "committed":
            self.rules.learn(self.cells[print_], event["seconds"] + event.get("seconds_before", 0.0))
            if event["attempt"] <= self.again.get(print_, 0):
                return  # that one was dropped
            # What was committed before may have been moved away since: the artifacts told.
            if event["launch"] == self.launch or (self.begun and folder(self.root, self.cells[print_]).is_dir()):
                self.mark_done(print_)
        elif event["launch"] == self.launch and event["event"] in ("failed", "lost"):
            if event["event"] == "failed" or event["attempt"] not in self.failed[print_]:
                self.failed[print_][event["attempt"]] = event["reason"]  # `lost` is what others say of it
            if self.failures(print_)[event["reason"]] > self.rules.most(event["reason"]):
                self.give_up(print_)

    def failures(self, print_: str) -> Counter[str]:
        """Type -> how many attempts of this launch at a cell ended so; two may tell of one lost attempt."""
        return Counter(self.failed[print_].values())

    def take_next(self, last: Cell | None, info: Mapping[str, Any]) -> Attempt | None:
        """Claim the cell to run now: one that this shape is for before others, then what the longest chain hangs on,
        then what reads the last one's output."""
        mine = [print_ for print_ in self.ready if print_ in self.rules.mine]
        for print_ in sorted(mine, key=lambda p: self._priority(p, last)):
            if self.rules.has_time(self.cells[print_]) and self.room(self.cells[print_]):
                attempt = self._claim(self.cells[print_], info)
                if attempt is not None:
                    return attempt
        return None

    def _priority(self, print_: str, last: Cell | None) -> tuple[bool, int, bool, int]:
        upstream = {c.fingerprint for c in self.cells[print_].inputs.values()}
        warm = last is not None and last.fingerprint in upstream
        return (print_ not in self.rules.home, -self.rank[print_], not warm, self.order[print_])

    def _claim(self, cell: Cell, info: Mapping[str, Any]) -> Attempt | None:
        print_, short = cell.fingerprint, cell.fingerprint[:SHORT]
        while True:
            before = self.claimed.get(short, 0)
            open_ = before > self.ended.get(print_, 0)
            if open_ and self._lives(short, before):
                return None
            if folder(self.root, cell).is_dir() and not self._to_make_again(cell):
                self.mark_done(print_)  # its worker died between the rename and the log line
                return None
            if self._lacks_dropped(cell):
                return None
            if open_ and not self._bury(cell, before):
                return None
            self.claimed[short] = before + 1
            if claims.claim(self.root, print_, before + 1, info):
                return Attempt(cell=cell, number=before + 1, halvings=self.failures(print_)[Failure.OOM])

    def _to_make_again(self, cell: Cell) -> bool:
        print_ = cell.fingerprint
        read = any(reader in self.hopeful for reader in self.readers.get(print_, ()))
        wanted = read or print_ in self.rules.wanted
        return print_ in self.again and wanted and record.is_dropped(folder(self.root, cell))

    def _lacks_dropped(self, cell: Cell) -> bool:
        """Whether an input was dropped since this board saw it: by another launch, for which it had served."""
        gone = [c for c in cell.inputs.values() if self._is_dropped(c)]
        for upstream in gone:
            self._revive(upstream)
        return bool(gone)

    def _is_dropped(self, cell: Cell) -> bool:
        return is_transient(cell.job) and record.is_dropped(folder(self.root, cell))

    def _revive(self, cell: Cell) -> None:
        """What was dropped is to be made again, and what it is made from where that was dropped too."""
        print_ = cell.fingerprint
        self.again[print_] = dropping.dropped_attempt(folder(self.root, cell))
        self.ended[print_] = max(self.again[print_], self.ended.get(print_, 0))
        self.hopeful.add(print_)
        for upstream in cell.inputs.values():
            if upstream.fingerprint not in self.hopeful and self._is_dropped(upstream):
                self._revive(upstream)
        self.waits_for[print_] = {c.fingerprint for c in cell.inputs.values()} & self.hopeful
        if not self.waits_for[print_]:
            self.ready.add(print_)
        self.feeds[print_] = [reader for reader in self.readers[print_] if reader in self.hopeful]
        for reader in self.feeds[print_]:
            self.waits_for[reader].add(print_)
            self.ready.discard(reader)

    def _lives(self, short: str, attempt: int) -> bool:
        info = claims.read_claim(self.root, short, attempt)
        alive = self.rules.alive(info, claims.made(self.root, short, attempt))
        if alive is None:
            heard = self.heard.setdefault(str(info.get("worker")), self.now())
            return self.now() - heard < SILENT_SECONDS
        return alive

    def _bury(self, cell: Cell, attempt: int) -> bool:
        """Say of an attempt whose maker is dead how it ended; whether the cell is tried again."""
        info = claims.read_claim(self.root, cell.fingerprint[:SHORT], attempt)
        reason, message = queue.verdict(info)
        last = self.failures(cell.fingerprint)[reason] + 1 > self.rules.most(reason)
        event = {
            "event": "failed" if last else "lost", "fingerprint": cell.fingerprint, "cell": cell.name,
            "launch": self.launch, "attempt": attempt, "reason": reason, "message": message, "node": info.get("host"),
        }  # fmt: skip
        self.say(event)
        self.take(event)
        return not last

    def outlook(self) -> Outlook:
        """What may still come for this worker, when `take_next` gave nothing.

        "": nothing. "time": something is ready, and there is not enough time left for it. "later": something waits for
        what others make. "others": others are at all that is left.
        """
        mine = [print_ for print_ in self.hopeful if print_ in self.rules.mine]
        free = [print_ for print_ in mine if self.claimed.get(print_[:SHORT], 0) <= self.ended.get(print_, 0)]
        if any(print_ in self.ready and not self.rules.has_time(self.cells[print_]) for print_ in free):
            return "time"
        return "later" if free else "others" if mine else ""
