"""The index answers as reading everything would, whatever state its snapshots are in."""

import hashlib
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from toolkit.manifest import index
from toolkit.manifest.files import check_root
from toolkit.manifest.log import Writer
from toolkit.manifest.record import commit

from .conftest import RECORD, make_out

CELLS = index.SMALL + 500
CHECKOUT = Path(__file__).parents[3]
COUNT = (
    "import sys; from pathlib import Path; from toolkit.manifest.index import records;"
    "print(len(records(Path(sys.argv[1]))[0])"
)


def fingerprint(n: int) -> str:
    return hashlib.sha256(str(n).encode()).hexdigest()


def put(root: Path, n: int, **metrics: float) -> Path:
    """A record as `commit` leaves it, without its syncs, of which thousands are slow."""
    full = {"format": 1, "job": f"job{n % 3}", "label": f"cell-{n}", "fingerprint": fingerprint(n)}
    full |= {**RECORD, "metrics": metrics or {"n": n}, "files": {}}
    folder = root / "artifacts" / f"job{n % 3}" / f"cell-{n}-{fingerprint(n)[:12]}"
    folder.mkdir(parents=True)
    (folder / "artifact.json").write_text(json.dumps(full))
    return folder


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("filled")
    check_root(root)
    for n in range(CELLS):
        put(root, n)
    index.records(root)
    return root


@pytest.fixture
def snapshot(filled: Path) -> Iterator[Path]:
    """The snapshot of `filled`, which is put back after the test."""
    path = filled / "index" / "records.parquet"
    data = path.read_bytes()
    yield path
    path.write_bytes(data)


def by_hand(root: Path) -> dict[str, Any]:
    records = [json.loads(path.read_text()) for path in root.glob("artifacts/*/*/artifact.json")]
    return {r["fingerprint"]: (r["job"], r["label"], r["spec"], r["metrics"]) for r in records}


def answer(root: Path) -> dict[str, Any]:
    found, problems = index.records(root)
    assert problems == []
    return {fp: (s.job, s.label, json.loads(s.spec), json.loads(s.metrics)) for fp, s in found.items()}


def test_committed_lists_folders_by_their_digits(root: Path) -> None:
    assert index.committed(root) == {} == index.committed(root / "nowhere")
    folder = commit(root, job="train", label="a-b", fingerprint="ab" * 32, out=make_out(root, "x"), record=RECORD)
    (root / "artifacts" / "README").touch()
    (root / "artifacts" / "train" / ".trash-1").mkdir()
    assert index.committed(root) == {"train": {"ab" * 6: folder.name}}
    found, _ = index.records(root)
    assert found["ab" * 32].folder == f"train/{folder.name}" and json.loads(found["ab" * 32].spec) == RECORD["spec"]


def test_a_small_root_needs_neither_a_snapshot_nor_pyarrow(root: Path) -> None:
    put(root, 1)
    command = [sys.executable, "-c", f"{COUNT}, 'pyarrow' in sys.modules, 'numpy' in sys.modules)", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=CHECKOUT, check=True)
    assert done.stdout.split() == ["1", "False", "False"] and not (root / "index" / "records.parquet").exists()


def test_a_large_root_is_answered_from_its_snapshot(filled: Path, snapshot: Path) -> None:
    expected = by_hand(filled)
    assert len(expected) == CELLS and answer(filled) == expected
    victim = next(filled.glob("artifacts/job0/*"))
    text = (victim / "artifact.json").read_text()
    (victim / "artifact.json").write_text("{")  # in place, so the folder's time stays: only a snapshot can know better
    assert answer(filled) == expected
    snapshot.unlink()
    found, problems = index.records(filled)
    assert len(found) == CELLS - 1 and len(problems) == 1 and str(victim) in problems[0]
    (victim / "artifact.json").write_text(text)
    assert answer(filled) == expected


def test_new_removed_and_rebuilt_folders_are_seen(filled: Path, snapshot: Path) -> None:
    added = put(filled, CELLS + 1)
    assert answer(filled) == by_hand(filled)
    shutil.rmtree(added)
    assert answer(filled) == by_hand(filled)
    again = put(filled, CELLS + 1, accuracy=0.5)  # the same name, and on many file systems the same inode
    assert answer(filled)[fingerprint(CELLS + 1)][3] == {"accuracy": 0.5}
    many = [put(filled, CELLS + n) for n in range(2, 90)]  # enough for the snapshot to be written again
    before = snapshot.stat().st_ino
    assert answer(filled) == by_hand(filled) and snapshot.stat().st_ino != before
    shutil.rmtree(again)
    put(filled, CELLS + 1, accuracy=0.75)
    assert answer(filled)[fingerprint(CELLS + 1)][3] == {"accuracy": 0.75}
    for folder in [again, *many]:
        shutil.rmtree(folder)
    assert answer(filled) == by_hand(filled)


def test_a_damaged_snapshot_is_made_anew(filled: Path, snapshot: Path) -> None:
    data, rng, expected = snapshot.read_bytes(), random.Random(0), by_hand(filled)
    damaged = [b"", b"PAR1", data[: len(data) // 2], data[:-1], data + b"x", b"\0" * len(data)]
    for _ in range(4):
        place = rng.randrange(100, len(data) // 2)  # in the pages, which have checksums
        damaged.append(data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :])
    for content in damaged:
        snapshot.write_bytes(content)
        assert answer(filled) == expected


def test_several_processes_make_the_snapshot_at_once(filled: Path, snapshot: Path) -> None:
    snapshot.unlink()
    command = [sys.executable, "-c", f"{COUNT})", str(filled)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=CHECKOUT) for _ in range(2)]
    assert [child.communicate()[0].strip() for child in both] == [str(CELLS)] * 2
    assert answer(filled) == by_hand(filled)
    assert [path.name for path in snapshot.parent.iterdir()] == ["records.parquet"]


def say(writer: Writer, fp: str, attempt: int, event: str, **more: Any) -> None:
    writer.append({"event": event, "fingerprint": fp, "attempt": attempt, **more}, sync=False)


def test_the_last_word_on_a_cell_does_not_depend_on_clocks_or_on_names_of_writers(root: Path) -> None:
    for names in (("a", "b"), ("b", "a")):
        study = f"study-{names[0]}"
        worker, launcher = Writer(root, study, names[0]), Writer(root, study, names[1])
        say(worker, "one", 1, "started", time=900.0)
        say(launcher, "one", 1, "lost", reason="LOST", time=950.0)
        say(worker, "one", 2, "started", time=100.0)  # another host, whose clock is behind
        say(worker, "two", 1, "started", time=900.0)
        say(launcher, "two", 1, "lost", time=950.0)
        say(worker, "two", 1, "committed", time=800.0)  # it was not lost, only out of sight
        say(worker, "three", 1, "started")
        say(worker, "three", 1, "failed", reason="OOM", message="too big")
        worker.append({"event": "idle"}, sync=False)
        state = index.attempts_state(root, study)
        assert {fp: (s.attempt, s.event, s.reason, s.message) for fp, s in state.items()} == {
            "one": (2, "started", "", ""),
            "two": (1, "committed", "", ""),
            "three": (1, "failed", "OOM", "too big"),
        }
        assert state["two"].worker == names[0] and state["two"].time == 800.0


def test_attempts_are_folded_from_where_the_last_call_stopped(root: Path) -> None:
    writer = Writer(root, "s", "w")
    for n in range(index.SMALL + 1):
        say(writer, fingerprint(n), 1, "started", time=float(n))
    first = index.attempts_state(root, "s")
    snapshot = root / "index" / "attempts-s.json"
    data = snapshot.read_bytes()
    writer.path.write_bytes(
        b"x" * (writer.path.stat().st_size - 1) + b"\n"
    )  # only a snapshot can know what stood there
    assert index.attempts_state(root, "s") == first and len(first) == index.SMALL + 1
    say(writer, fingerprint(0), 2, "failed", reason="BUG")
    second = index.attempts_state(root, "s")
    assert second.pop(fingerprint(0))[:3] == (2, "failed", "BUG")
    assert second == {fp: said for fp, said in first.items() if fp != fingerprint(0)}
    for content in (b"", data[: len(data) // 2], data[:-2] + b" }", b"\n", b"\xff"):
        snapshot.write_bytes(content)
        assert list(index.attempts_state(root, "s")) == [fingerprint(0)]  # from what the segment holds by now
    snapshot.write_bytes(data)
    writer.path.unlink()
    assert index.attempts_state(root, "s") == {}


def test_an_index_that_cannot_be_written_changes_no_answer(filled: Path, snapshot: Path) -> None:
    index_folder = snapshot.parent.rename(filled / "aside")
    (filled / "index").touch()  # permissions would not stop root
    try:
        assert answer(filled) == by_hand(filled)
    finally:
        (filled / "index").unlink()
        index_folder.rename(filled / "index")
