"""What a worker takes, waits for and gives up: a board on a root of its own, with events written by hand."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slurm import board as board_module
from slurm import submissions
from slurm.allocation import Allocation
from slurm.board import Board, Rules
from slurm.estimates import Estimates
from slurm.profiles import Profile, Shape
from slurm.worker import _has_time
from toolkit.manifest import claims
from toolkit.manifest.files import check_root
from toolkit.manifest.log import Writer
from toolkit.study import Cell, Stage, Study

BIOS = {"dataset": "bios", "people": 16}


def chain(seeds: int = 2) -> list[Cell]:
    stages = {
        "people": Stage(job="prepare", spec=BIOS, axes={"seed": list(range(seeds))}),
        "words": Stage(job="tokenizer", inputs={"data": "people"}, spec={"split": "pretrain", "vocab_size": 300}),
        "alone": Stage(job="prepare", spec={**BIOS, "seed": 99}),
    }
    return submissions.cells_of(Path("/nowhere"), Study(name="s", stages=stages))


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., tuple[Board, Writer]]:
    check_root(tmp_path)

    def make(cells: list[Cell], launch: int = 1, **rules: Any) -> tuple[Board, Writer]:
        everything = {cell.fingerprint for cell in cells}
        words = {"mine": everything, "home": everything, **rules}
        writer = Writer(tmp_path, "s")
        return Board(tmp_path, "s", launch, cells, Rules(**words), writer.append, time.monotonic), writer

    return make


def end(cell: Cell, kind: str, attempt: int, launch: int = 1, **more: Any) -> dict[str, Any]:
    words = {"event": kind, "fingerprint": cell.fingerprint, "cell": cell.name, "attempt": attempt, "launch": launch}
    return {**words, "seconds": 1.0, **more}


INFO = {**claims.identity(), "worker": "me"}


def test_what_its_shape_is_for_comes_before_what_more_hangs_on(make: Callable[..., tuple[Board, Writer]]) -> None:
    cells = chain()
    alone = next(cell for cell in cells if cell.stage == "alone")
    board, _ = make(cells)
    first = board.take_next(None, INFO)
    assert first is not None and first.cell.name == "people[seed=0]", "the longest chain"
    board, _ = make(cells, home={alone.fingerprint})
    taken = board.take_next(None, INFO)
    assert taken is not None and taken.cell is alone
    board, _ = make(cells, mine={alone.fingerprint})
    assert board.take_next(None, INFO) is None and board.outlook() == "others", "that one is somebody else's by now"


def test_what_is_cancelled_takes_along_what_is_made_from_it(make: Callable[..., tuple[Board, Writer]]) -> None:
    cells = chain(1)
    board, _ = make(cells)
    board.cancel([cells[0].fingerprint])
    taken = board.take_next(None, INFO)
    assert taken is not None and taken.cell.stage == "alone"
    board, writer = make(cells)
    board.cancel([cell.fingerprint for cell in cells if cell.stage == "alone"])
    assert board.outlook() == "later"
    board.cancel([cells[0].fingerprint])
    assert board.outlook() == ""


def test_a_failure_is_retried_as_its_type_says_and_then_ends_what_waits_for_it(
    make: Callable[..., tuple[Board, Writer]],
) -> None:
    cells = [cell for cell in chain(1) if cell.stage != "alone"]
    board, writer = make(cells, retry={"OOM": 1})
    for attempt in (1, 2):
        taken = board.take_next(None, INFO)
        assert taken is not None and (taken.number, taken.halvings) == (attempt, attempt - 1)
        writer.append(end(cells[0], "failed", attempt, reason="OOM"))
        writer.append(end(cells[0], "lost", attempt, reason="LOST"))  # another one's word on the same attempt
        board.refresh()
        assert board.outlook() == ("later" if attempt == 1 else "")
    assert board.take_next(None, INFO) is None
    board, _ = make(cells, launch=2)
    taken = board.take_next(None, INFO)
    assert taken is not None and (taken.number, taken.halvings) == (3, 0), "another launch counts anew"


def test_the_dead_are_buried_once_for_all(make: Callable[..., tuple[Board, Writer]], tmp_path: Path) -> None:
    cells = chain(1)[:1]
    gone = {**INFO, "host": "elsewhere", "boot_id": "another", "worker": "w"}
    told: dict[str, bool | None] = {"alive": True}
    board, _ = make(cells, alive=lambda info, made: told["alive"], retry={"LOST": 1})
    assert claims.claim(tmp_path, cells[0].fingerprint, 1, gone)
    board.claimed = claims.all_claims(tmp_path)
    assert board.take_next(None, INFO) is None and board.outlook() == "others"
    told["alive"] = None
    assert board.take_next(None, INFO) is None, "nobody can say: it is given time"
    told["alive"] = False
    taken = board.take_next(None, INFO)
    assert taken is not None and taken.number == 2
    board.refresh()
    taken = board.take_next(None, INFO)  # its own claim counts as dead too, in this test
    assert taken is None
    board.refresh()
    kinds = [(e["event"], e["attempt"], e.get("reason")) for e in board_module.Reader(tmp_path, "s").new_events()]
    assert kinds == [("lost", 1, "LOST"), ("failed", 2, "LOST")], "the last one is a failure, and told as one"
    assert board.outlook() == ""


def test_one_that_nobody_can_be_asked_about_is_dead_when_it_is_silent(
    make: Callable[..., tuple[Board, Writer]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = chain(1)[:1]
    board, _ = make(cells, alive=lambda info, made: None)
    clock = [1000.0]
    monkeypatch.setattr(board, "now", lambda: clock[0])
    claims.claim(tmp_path, cells[0].fingerprint, 1, {**INFO, "worker": "w"})
    board.claimed = claims.all_claims(tmp_path)
    other = Writer(tmp_path, "s", "w")
    assert board.take_next(None, INFO) is None
    clock[0] += board_module.SILENT_SECONDS - 1
    other.append({"event": "alive", "launch": 1})
    board.refresh()
    clock[0] += board_module.SILENT_SECONDS - 1
    assert board.take_next(None, INFO) is None, "it has been heard since"
    clock[0] += 2
    assert board.take_next(None, INFO) is not None


def test_a_stage_is_not_started_where_the_time_is_too_short(
    make: Callable[..., tuple[Board, Writer]], tmp_path: Path
) -> None:
    cells = chain(2)
    estimates = Estimates()
    estimates.learn(cells[0], 600.0)
    shape = Shape(hours=1)
    profile = Profile(shapes={"cpu": shape}, jobs={"default": {"shape": "cpu"}}, grace_seconds=60)

    def left(seconds: float) -> Allocation:
        began = time.monotonic() - (3600 - 60 - seconds)
        return Allocation(profile=profile, name="cpu", shape=shape, began=began)

    other = cells[1]
    assert _has_time(tmp_path, left(700), estimates, other), "a seed is no size"
    assert not _has_time(tmp_path, left(500), estimates, other)
    state = tmp_path / "work" / other.fingerprint[:12] / "state"
    state.mkdir(parents=True)
    (state / "progress.json").write_text('{"step": 3, "total": 10, "unit": "step", "eta_seconds": 1}')
    assert _has_time(tmp_path, left(500), estimates, other), "three tenths of it are done"
    fresh = Allocation(profile=profile, name="cpu", shape=shape)
    estimates.learn(cells[0], 10**6)
    estimates.learn(cells[0], 10**6)
    assert _has_time(tmp_path, fresh, estimates, other), "no allocation has more time than a fresh one"
    board, _ = make(cells, has_time=lambda cell: _has_time(tmp_path, left(500), estimates, cell))
    while board.take_next(None, {**INFO, "pid": os.getpid()}):
        pass
    assert board.outlook() == "time"


def test_estimates_come_from_the_nearest_kin(tmp_path: Path) -> None:
    people, words, _ = chain(1)
    estimates = Estimates()
    assert estimates.of(people) is None
    estimates.learn(words, 5.0)
    estimates.learn(people, 60.0)
    larger = submissions.cells_of(
        tmp_path, Study(name="s", stages={"people": Stage(job="prepare", spec={**BIOS, "people": 64})})
    )[0]
    renamed = submissions.cells_of(tmp_path, Study(name="s", stages={"folk": Stage(job="prepare", spec=BIOS)}))[0]
    found = {name: estimates.of(cell) for name, cell in (("same", people), ("larger", larger), ("renamed", renamed))}
    assert {name: (e.seconds, e.like) for name, e in found.items() if e} == {
        "same": (60.0, "size"), "larger": (60.0, "stage"), "renamed": (60.0, "job")
    }  # fmt: skip
    handed = Estimates(estimates.words([people]))
    assert handed.of(people) == estimates.of(people) and handed.of(words) is None
