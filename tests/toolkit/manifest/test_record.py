"""Commit, find, verify: also when killed anywhere, raced by others, or out of disk."""

import errno
import json
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import xxhash

from toolkit.failures import Failure, FilesNotVisible, UpstreamDamaged, classify
from toolkit.manifest.files import check_root, digest_file
from toolkit.manifest.record import artifact_folder, commit, find, missing_files, read, verify, wait_visible

from .conftest import RECORD, forked, make_out, wait

FP = "0123456789abcdef" * 4


def do_commit(root: Path, out: Path, fingerprint: str = FP) -> Path:
    return commit(root, job="train", label="tuned", fingerprint=fingerprint, out=out, record=RECORD, timeout=0.1)


def test_digest_is_xxh3_128_of_the_bytes(tmp_path: Path) -> None:
    data = random.Random(0).randbytes((4 << 20) + 17)  # longer than one block
    (tmp_path / "f").write_bytes(data)
    assert digest_file(tmp_path / "f") == f"xxh3:{xxhash.xxh3_128(data).hexdigest()}"
    (tmp_path / "f").write_bytes(b"")
    assert digest_file(tmp_path / "f") == "xxh3:99aa06d3014798d86001c324468d497f"  # published vector of XXH3-128("")


def test_commit_publishes_files_and_record(root: Path) -> None:
    out = make_out(root, "a")
    (out / "latest.bin").symlink_to("weights.bin")
    folder = do_commit(root, out)
    assert folder == root / "artifacts" / "train" / "tuned-0123456789ab" == artifact_folder(root, "train", "tuned", FP)
    assert not out.exists()
    record = find(root, "train", "tuned", FP)
    assert record is not None and record == read(folder)
    assert {key: record[key] for key in RECORD} == RECORD
    assert list(record["files"]) == ["data/deep/rows.txt", "data/empty", "latest.bin", "weights.bin"]
    assert record["files"]["data/deep/rows.txt"]["size"] == 8
    assert verify(folder) == []
    assert find(root, "train", "tuned", "f" * 64) is None


def test_two_cells_with_the_same_first_digits_are_told_apart(root: Path) -> None:
    other = FP[:12] + "f" * 52
    do_commit(root, make_out(root, "a"))
    with pytest.raises(UpstreamDamaged, match="belongs to fingerprint"):
        find(root, "train", "tuned", other)
    out = make_out(root, "b")
    with pytest.raises(UpstreamDamaged, match="belongs to fingerprint"):
        do_commit(root, out, other)
    assert out.exists()


def test_a_final_folder_without_a_record_stops_commit_and_find(root: Path) -> None:
    folder = do_commit(root, make_out(root, "a"))
    (folder / "artifact.json").write_bytes((folder / "artifact.json").read_bytes()[:100])
    with pytest.raises(UpstreamDamaged, match=r"launch again to make it anew"):
        do_commit(root, make_out(root, "b"))
    (folder / "artifact.json").unlink()
    with pytest.raises(UpstreamDamaged, match=r"mv '.*tuned-0123456789ab' '.*\.damaged'"):
        find(root, "train", "tuned", FP, timeout=0)
    assert len(verify(folder)) == 1


def test_a_record_that_comes_late_is_waited_for(root: Path) -> None:
    folder = do_commit(root, make_out(root, "a"))
    (folder / "artifact.json").rename(root / "late")
    timer = threading.Timer(0.3, lambda: (root / "late").rename(folder / "artifact.json"))
    timer.start()
    found = find(root, "train", "tuned", FP, timeout=20)
    assert found is not None and found["fingerprint"] == FP


def test_files_that_come_late_are_waited_for_and_then_listed(root: Path) -> None:
    folder = do_commit(root, make_out(root, "a"))
    record = read(folder)
    (folder / "data" / "deep").rename(root / "late")
    os.truncate(folder / "weights.bin", 10)
    with pytest.raises(FilesNotVisible, match=r"2 of 3 files .*: data/deep/rows.txt, weights.bin") as caught:
        wait_visible(folder, record, 0.1)
    assert classify(caught.value) is Failure.FS_VISIBILITY
    (folder / "weights.bin").write_bytes(bytes(range(256)) * 4)
    timer = threading.Timer(0.3, lambda: (root / "late").rename(folder / "data" / "deep"))
    timer.start()
    wait_visible(folder, record, 20)
    assert missing_files(folder, record) == []


def test_verify_names_what_is_wrong(root: Path) -> None:
    folder = do_commit(root, make_out(root, "a"))
    (folder / "data" / "extra").touch()
    (folder / "data" / "empty").write_text("x")
    (folder / "data" / "deep" / "rows.txt").unlink()
    (folder / "weights.bin").write_bytes(b"\xff" + (folder / "weights.bin").read_bytes()[1:])
    shallow = [problem.split(":")[0] for problem in verify(folder, deep=False)]
    deep = [problem.split(":")[0] for problem in verify(folder)]
    assert shallow == ["data/deep/rows.txt", "data/empty", "data/extra"]
    assert deep == ["data/deep/rows.txt", "data/empty", "weights.bin", "data/extra"]


def test_verify_sees_an_edited_record_and_a_renamed_folder(root: Path) -> None:
    folder = do_commit(root, make_out(root, "a"))
    text = (folder / "artifact.json").read_text()
    (folder / "artifact.json").write_text(text.replace('"loss": 1.25', '"loss": 1.00'))
    assert [p for p in verify(folder) if "changed since it was written" in p] == verify(folder) != []
    (folder / "artifact.json").write_text(text)
    assert verify(folder) == []
    moved = folder.rename(folder.with_name("tuned-ffffffffffff"))
    assert ["not the one in the folder's name" in p for p in verify(moved)] == [True]


@pytest.mark.parametrize("kind", ["absolute", "outside", "dangling", "folder", "pipe"])
def test_what_a_rename_would_break_is_refused(root: Path, kind: str) -> None:
    out = make_out(root, "a")
    (root / "outside").touch()
    target = {"absolute": out / "weights.bin", "outside": "../../../outside", "dangling": "nothing", "folder": "data"}
    if kind == "pipe":
        os.mkfifo(out / "bad")
    else:
        (out / "bad").symlink_to(target[kind])
    with pytest.raises(ValueError, match=rf"out/bad is a {'pipe' if kind == 'pipe' else 'link to'}"):
        do_commit(root, out)
    assert find(root, "train", "tuned", FP) is None


def test_a_job_may_not_write_the_record_and_metrics_must_be_json(root: Path) -> None:
    out = make_out(root, "a")
    (out / "artifact.json").write_text("{}")
    with pytest.raises(ValueError, match="artifact.json"):
        do_commit(root, out)
    (out / "artifact.json").unlink()
    with pytest.raises(TypeError, match="not JSON serializable"):
        commit(root, job="train", label="tuned", fingerprint=FP, out=out, record={"metrics": {"x": {1, 2}}})
    assert verify(do_commit(root, out)) == []


def test_the_root_must_be_writable(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    said = tmp_path / "said"
    said.touch(mode=0o666)
    said.chmod(0o666)
    tmp_path.chmod(0o755)

    def try_it() -> None:
        file = open(said, "w")
        if os.geteuid() == 0:
            os.seteuid(65534)
        try:
            check_root(locked / "root")
        except ValueError as error:
            file.write(str(error))
            file.close()

    assert wait(forked(try_it)) == 0
    text = said.read_text()
    assert str(locked / "root") in text and "user" in text and "Permission denied" in text and "TIDEMARK_ROOT" in text
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="Not a directory"):
        check_root(tmp_path / "file")


def check_after_death(root: Path) -> bool:
    """Either nothing was committed, or all of it; True if it was. Afterwards, another attempt succeeds."""
    done = find(root, "train", "tuned", FP, timeout=0) is not None
    if done:
        assert verify(artifact_folder(root, "train", "tuned", FP)) == []
    again = do_commit(root, make_out(root, f"again-{random.random()}"))
    assert verify(again) == []
    again.rename(root / f"seen-{random.random()}")
    return done


def test_killed_at_every_system_call_of_a_commit(root: Path) -> None:
    """An audit hook in the child counts what Python asks of the file system, and kills the child before the n-th."""
    outcomes = []
    for n in range(1, 500):
        out = make_out(root, f"try-{n}")

        def work(out: Path = out, n: int = n) -> None:
            count = 0

            def hook(event: str, args: object) -> None:
                nonlocal count
                if event not in ("open", "os.rename", "os.mkdir", "os.scandir", "os.listdir", "os.remove"):
                    return
                count += 1
                if count == n:
                    os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(hook)
            do_commit(root, out)

        code = wait(forked(work))
        outcomes.append((code, check_after_death(root)))
        if code == 0:
            break
    assert outcomes[-1] == (0, True)
    assert {code for code, _ in outcomes[:-1]} == {-signal.SIGKILL}
    assert {done for _, done in outcomes[:-1]} == {False, True}  # before the rename, and between it and the last sync
    assert len(outcomes) >= 15


def test_killed_at_random_moments_of_a_commit(root: Path) -> None:
    rng = random.Random(20)
    start = time.perf_counter()
    do_commit(root, make_out(root, "measure", 1 << 20)).rename(root / "measured")
    duration = time.perf_counter() - start
    kills = tries = 0
    while kills < 32 and tries < 400:
        tries += 1
        out = make_out(root, f"try-{tries}", 1 << 20)
        pid = forked(lambda out=out: do_commit(root, out))  # type: ignore[misc]
        time.sleep(rng.uniform(0, duration))
        os.kill(pid, signal.SIGKILL)
        code = wait(pid)
        kills += code == -signal.SIGKILL
        assert check_after_death(root) or code != 0
    assert kills >= 30


def test_eight_processes_commit_the_same_cell(root: Path) -> None:
    outs = [make_out(root, f"racer-{i}", 200_000) for i in range(8)]
    inodes = [out.stat().st_ino for out in outs]
    go = root / "go"

    def race(out: Path) -> None:
        while not go.exists():
            time.sleep(0.001)
        assert do_commit(root, out) == artifact_folder(root, "train", "tuned", FP)

    pids = [forked(lambda out=out: race(out)) for out in outs]  # type: ignore[misc]
    go.touch()
    assert [wait(pid) for pid in pids] == [0] * 8
    folder = artifact_folder(root, "train", "tuned", FP)
    assert verify(folder) == []
    assert inodes.count(folder.stat().st_ino) == 1
    assert [path for path in (root / "work").rglob("*") if path.name != "out" and path.is_file()] == []
    assert not any(out.exists() for out in outs)


def test_a_full_disk_leaves_no_record(tiny_disk: Path) -> None:
    check_root(tiny_disk)
    out = make_out(tiny_disk, "a")
    with open(tiny_disk / "ballast", "wb", buffering=0) as ballast:
        with pytest.raises(OSError):
            while True:
                ballast.write(bytes(4096))
    with pytest.raises(OSError) as caught:
        do_commit(tiny_disk, out)
    assert caught.value.errno == errno.ENOSPC
    assert classify(caught.value) is Failure.DISK_FULL
    assert find(tiny_disk, "train", "tuned", FP) is None
    assert [path for path in tiny_disk.rglob("*") if "artifact.json" in path.name] == []
    (tiny_disk / "ballast").unlink()
    assert verify(do_commit(tiny_disk, out)) == []


def test_the_record_is_readable_json(root: Path) -> None:
    folder = do_commit(root, make_out(root, "a"))
    record = json.loads((folder / "artifact.json").read_text())
    assert list(record)[:4] == ["format", "job", "label", "fingerprint"]
