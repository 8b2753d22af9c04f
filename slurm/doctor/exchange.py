"""Messages between the tasks of a job and the login node, through files alone, as Tidemark's workers talk.

One side writes a file and waits for the answer, all on its own clock: half of the time that passed is how long a file
takes to be seen, and what the other side noted in between tells the difference of the clocks, wrong by no more than
that half (Cristian, Probabilistic clock synchronization, 1989).
"""

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from toolkit.manifest.files import write_atomic
from toolkit.manifest.record import VISIBLE_SECONDS, refresh

Kind = Literal["new", "replaced"]  # of files: each message in one of its own, or all in one that is replaced
KINDS: tuple[Kind, ...] = ("new", "replaced")
ROUNDS, LONG_SECONDS = 10, 15.0  # of messages; none is begun after so long
LEAVE_SECONDS = 180.0  # that one task waits for another, which imports torch meanwhile
POLL_SECONDS = 0.002
SIZE = 65536  # bytes of a message: more than a page, so that one half of it could be seen


class Silent(TimeoutError):
    """The other side said nothing."""


@dataclass(kw_only=True)
class Answers:
    """One side of an exchange: answers what the other asks, once `step` is called often enough."""

    folder: Path
    me: str
    other: str
    kind: Kind
    round: int = 0
    torn: int = 0  # how often a replaced file was not there, or not whole
    done: bool = False

    def step(self) -> None:
        """Answer if there is something to answer."""
        try:
            asked = json.loads(_name(self.folder, self.other, self.me, self.kind, self.round).read_bytes())
        except (OSError, ValueError) as error:
            absent = isinstance(error, FileNotFoundError) and (self.kind == "new" or self.round == 0)
            self.torn += not absent
            return
        seen = time.time()
        if asked["round"] < self.round:
            return
        _send(self.folder, self.me, self.other, self.kind, {"round": self.round, "seen": seen, "sent": time.time()})
        self.done, self.round = asked["last"], self.round + 1


def answer(folder: Path, me: str, other: str, kind: Kind) -> int:
    """Answer until the other side has no more to ask; how often a replaced file was not whole.

    Raises:
        Silent: it does not ask, or stops in the middle.
    """
    answers = Answers(folder=folder, me=me, other=other, kind=kind)
    heard, known = time.monotonic(), 0
    while not answers.done:
        _wait(folder, heard, LEAVE_SECONDS, f"task {other}")
        answers.step()
        if answers.round > known:
            heard, known = time.monotonic(), answers.round
    return answers.torn


def ask(folder: Path, me: str, other: str, kind: Kind) -> dict[str, Any]:
    """Exchange messages with the other side.

    delays: seconds until a file was seen, one a round. offset: by how much the other clock is ahead, in seconds; bound:
    by how much that may be wrong.

    Raises:
        Silent: it does not answer within twice the time that a file may take, or has not come.
    """
    delays, best, began = [], (float("inf"), 0.0), time.monotonic()
    for number in range(ROUNDS):
        last = number == ROUNDS - 1 or time.monotonic() - began > LONG_SECONDS
        sent = time.time()
        _send(folder, me, other, kind, {"round": number, "last": last})
        patience = 2 * VISIBLE_SECONDS if number else LEAVE_SECONDS
        reply = receive(_name(folder, other, me, kind, number), patience, number)
        back = time.time()
        if number == 0:  # the other side had perhaps not begun to look: this measures nothing
            continue
        delays.append((back - sent - (reply["sent"] - reply["seen"])) / 2)
        best = min(best, (delays[-1], ((reply["seen"] - sent) + (reply["sent"] - back)) / 2))
        if last:
            break
    return {"delays": delays, "bound": best[0], "offset": best[1]}


def _name(folder: Path, sender: str, receiver: str, kind: Kind, number: int) -> Path:
    return folder / f"{sender}-{receiver}{f'.{number}' if kind == 'new' else ''}"


def _send(folder: Path, me: str, other: str, kind: Kind, words: Mapping[str, Any]) -> None:
    text = json.dumps(words).ljust(SIZE)
    write_atomic(_name(folder, me, other, kind, words["round"]), text.encode(), sync=False)


def receive(path: Path, seconds: float, number: int = 0) -> dict[str, Any]:
    """The message of that round in a file, once it is there.

    Raises:
        Silent: it does not come within that time.
    """
    began = time.monotonic()
    while True:
        with suppress(OSError, ValueError):
            words: dict[str, Any] = json.loads(path.read_bytes())
            if words.get("round", number) >= number:
                return words
        _wait(path.parent, began, seconds, path.name)


def _wait(folder: Path, began: float, seconds: float, what: str) -> None:
    passed = time.monotonic() - began
    if passed > seconds:
        raise Silent(f"{what}: nothing within {seconds:.0f} s")
    time.sleep(POLL_SECONDS if passed < 1 else 0.05)
    refresh(folder)
