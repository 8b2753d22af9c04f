"""Drop, pin, make anew: also when killed anywhere, and when two make it anew at once."""

import os
import random
import signal
import time
from pathlib import Path

from toolkit.manifest import dropping
from toolkit.manifest.claims import identity, liveness
from toolkit.manifest.record import DROPPED, RECORD, artifact_folder, commit, is_dropped, read, verify

from .conftest import RECORD as WORDS
from .conftest import forked, wait

FP = "0123456789abcdef" * 4


def make(root: Path, name: str, files: int = 3, size: int = 10) -> Path:
    out = root / "work" / name
    for i in range(files):
        (out / f"d{i % 3}").mkdir(parents=True, exist_ok=True)
        (out / f"d{i % 3}" / str(i)).write_bytes(bytes(size))
    return commit(root, job="fetch", label="model", fingerprint=FP, out=out, record=WORDS, timeout=5)


def do_drop(root: Path) -> bool:
    return dropping.drop(root, artifact_folder(root, "fetch", "model", FP), FP, identity())


def test_the_record_stays_and_is_verified(root: Path) -> None:
    folder = make(root, "a", files=4)
    told = read(folder)
    assert dropping.size(told) == (40, 4 + 4 + 2)
    assert not dropping.any_of(root, "fetch") and do_drop(root) and dropping.any_of(root, "fetch")
    assert sorted(os.listdir(folder)) == [DROPPED, RECORD] and read(folder) == told
    assert is_dropped(folder) and verify(folder) == [] and not do_drop(root)
    (folder / "more").touch()
    assert verify(folder) == ["more: not in the record"]
    assert make(root, "b", files=4) == folder and not is_dropped(folder) and verify(folder) == []
    assert os.listdir(folder.parent).count(folder.name) == 1 and len(os.listdir(folder.parent)) == 2


def test_what_is_pinned_stays(root: Path) -> None:
    dropping.pin(root, FP)
    folder = make(root, "a")
    assert not do_drop(root) and not is_dropped(folder)
    dropping.unpin(root, FP)
    dropping.unpin(root, FP)
    assert do_drop(root)


def test_another_cell_with_the_same_first_digits_is_not_replaced(root: Path) -> None:
    folder = make(root, "a")
    do_drop(root)
    out = root / "work" / "b"
    out.mkdir()
    try:
        commit(root, job="fetch", label="model", fingerprint=FP[:12] + "f" * 52, out=out, record=WORDS, timeout=0.1)
    except ValueError as error:
        assert "belongs to fingerprint" in str(error)
    else:
        raise AssertionError("it was published")
    assert is_dropped(folder) and read(folder)["fingerprint"] == FP


def drop_and_die(root: Path, after: int) -> None:
    """SIGKILL in place of the deletion that comes after so many."""
    real = os.unlink

    def unlink(name: str, *, dir_fd: int) -> None:
        nonlocal after
        after -= 1
        if after < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        real(name, dir_fd=dir_fd)

    os.unlink = unlink  # type: ignore[assignment]
    do_drop(root)


def test_killed_while_dropping(root: Path) -> None:
    """The marker is there before anything is gone, and another finishes it once its maker is dead."""
    for after in (0, 1, 7, 29):
        folder = make(root, f"a{after}", files=30)
        child = forked(lambda after=after: drop_and_die(root, after))
        assert wait(child) == -signal.SIGKILL
        assert is_dropped(folder) and verify(folder) == []
        left = sum(len(names) for _, _, names in os.walk(folder))
        assert left == 30 - after + 2  # marker and record
        dropping.finish(folder, lambda who, made: None)
        assert sum(len(names) for _, _, names in os.walk(folder)) == left, "it may live"
        dropping.finish(folder, lambda who, made: liveness(who))
        assert sorted(os.listdir(folder)) == [DROPPED, RECORD] and verify(folder) == []


def test_two_make_it_anew_and_are_killed(root: Path) -> None:
    rng = random.Random(3)
    for n in range(60):
        folder = make(root, f"a{n}")
        do_drop(root)
        children = [forked(lambda name=name: make(root, name)) for name in (f"b{n}", f"c{n}")]
        if n % 2:
            time.sleep(rng.uniform(0, 0.01))
            os.kill(rng.choice(children), signal.SIGKILL)
        for child in children:
            wait(child)
        if folder.is_dir():
            assert verify(folder) == [], n
        assert n % 2 or not is_dropped(folder)
        make(root, f"d{n}")
        assert verify(folder) == [] and not is_dropped(folder)
