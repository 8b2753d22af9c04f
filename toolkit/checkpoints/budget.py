"""How many requests all processes of a root may send together: the Hub's free tier has a limit for each five minutes.

A process reserves a block of requests by making an empty file and counts the blocks that are not older than the window.
It stands under the root because downloads of one study run in several processes, on several login nodes even. There is
no lock and no file with two writers, and ages are differences between times that the file system gave: one clock.

A network file system may hide a file that another host made for some seconds. Then a few blocks too many are spent, and
the Hub answers 429, which has the last word anyway.
"""

import os
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
FRESH = 30.0  # seconds after which what is left of a block counts as spent


@dataclass(kw_only=True)
class Budget:
    """`take` returns as soon as one more request may be sent; threads may share it."""

    folder: Path
    limits: Mapping[str, int] = field(default_factory=lambda: LIMITS)
    window: float = WINDOW
    _left: dict[str, tuple[int, float]] = field(default_factory=dict, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def take(self, kind: str) -> None:
        """Wait for the right to send one request of a kind of `limits`."""
        with self._lock:
            left, since = self._left.get(kind, (0, 0.0))
            if not left or time.monotonic() - since > min(FRESH, self.window):
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
        older = sorted(
            (stamp, name, n) for stamp, name, n in self._blocks(kind, now) if (stamp, name) < (now, mine.name)
        )
        room = self.limits[kind] - count
        if sum(n for *_, n in older) <= room:
            return 0.0
        mine.unlink(missing_ok=True)
        spent = sum(n for *_, n in older)
        for stamp, _, n in older:  # until so many have left the window that this block fits
            spent -= n
            if spent <= room:
                return max(stamp + self.window - now, 0.0) + 0.01
        raise AssertionError("a block is never larger than the limit")

    def _blocks(self, kind: str, now: float) -> list[tuple[float, str, int]]:
        """(time, name, requests) of the blocks in the window; older files are removed."""
        found = []
        for entry in os.scandir(self.folder):
            with suppress(FileNotFoundError):  # another process removed it
                stamp = entry.stat().st_mtime
                if stamp < now - self.window:
                    os.unlink(entry.path)
                elif entry.name.startswith(f"{kind}."):
                    found.append((stamp, entry.name, int(entry.name.split(".")[1])))
        return found
