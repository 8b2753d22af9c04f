"""How many requests all processes of a root may send together: the Hub's free tier has a limit for each five minutes.

A process reserves a block of requests by making an empty file and counts the blocks that are not older than the window.
It stands under the root because downloads of one study run in several processes, on several login nodes even. There is
no lock and no file with two writers, and ages are differences between times that the file system gave: one clock.

A network file system may hide a file that another host made for some seconds. Then a few blocks too many are spent, and
the Hub answers 429, which has the last word anyway.
"""

import os
import random
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

LIMITS = {"api": 1000, "files": 5000}  # requests in a window, for a user without a subscription
WINDOW = 300.0  # seconds
BLOCK = 20
FRESH = 0.1  # of the window: the time in which a block is to be spent; what is left of it then is given up


@dataclass(kw_only=True)
class Budget:
    """`take` returns as soon as one more request may be sent; threads may share it."""

    folder: Path
    limits: Mapping[str, int] = field(default_factory=lambda: LIMITS)
    window: float = WINDOW
    _left: dict[str, tuple[int, float]] = field(default_factory=dict, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    @property
    def _counted(self) -> float:
        """Seconds for which a block counts: its last request may come when it is no longer fresh."""
        return self.window * (1 + FRESH)

    def take(self, kind: str) -> None:
        """Wait for the right to send one request of a kind of `limits`."""
        with self._lock:
            left, since = self._left.get(kind, (0, 0.0))
            if not left or time.monotonic() - since > FRESH * self.window:
                left = min(BLOCK, self.limits[kind])
                while (wait := self._reserve(kind, left)) > 0:
                    time.sleep(wait)
                since = time.monotonic()
            self._left[kind] = (left - 1, since)

    def _reserve(self, kind: str, count: int) -> float:
        """Make a block's file; if there was no room for it, remove it and say how long to wait."""
        self.folder.mkdir(parents=True, exist_ok=True)
        mine = self.folder / f"{kind}.{count}.{uuid.uuid4().hex}"
        mine.touch(exist_ok=False)
        now = mine.stat().st_mtime
        others = sorted(block for block in self._blocks(kind, now) if block[1] != mine.name)
        room = self.limits[kind] - count
        spent = sum(n for *_, n in others)
        if spent <= room:
            return 0.0
        # All others count, not only earlier ones: files that are made within one tick of the clock have the same time,
        # and one of them may have been there when this one was not. So two may give way to each other, and try again.
        mine.unlink(missing_ok=True)
        if sum(n for stamp, _, n in others if stamp < now) <= room:
            return random.uniform(0.01, 0.1)
        for stamp, _, n in others:  # until so many have left the window that this block fits
            spent -= n
            if spent <= room:
                return max(stamp + self._counted - now, 0.0) + random.uniform(0.01, 0.1)
        raise AssertionError("a block is never larger than the limit")

    def _blocks(self, kind: str, now: float) -> list[tuple[float, str, int]]:
        """(time, name, requests) of the blocks in the window; older files are removed."""
        found = []
        for entry in os.scandir(self.folder):
            with suppress(FileNotFoundError):  # another process removed it
                stamp = entry.stat().st_mtime
                if stamp < now - self._counted:
                    os.unlink(entry.path)
                elif entry.name.startswith(f"{kind}."):
                    found.append((stamp, entry.name, int(entry.name.split(".")[1])))
        return found
