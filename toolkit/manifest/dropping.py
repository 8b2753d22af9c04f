"""Dropping: an artifact that can be made again gives its room back, and its folder stays with its record.

A marker is written before the first file goes, so what a killed process leaves does not pass for whole. Files are
deleted through a descriptor of the folder that has the marker: one that was made anew meanwhile, under the same name,
is another folder. What a person pins (`ROOT/keep/<fp12>`) is never dropped; a pin outlives the artifact. Nor is what
another artifact is stored as a change to (`bases.py`).
"""

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from toolkit.fingerprint import SHORT
from toolkit.manifest import bases
from toolkit.manifest.files import sync_folder
from toolkit.manifest.record import DROPPED, LOG, RECORD, read

HINT = ".dropped"  # in a job's folder: something of it was dropped once. Without it nobody looks for markers.


class Size(NamedTuple):
    """What an artifact takes: bytes of its files, and inodes with those of its folders, record and log."""

    bytes: int = 0
    inodes: int = 0

    def plus(self, other: "Size") -> "Size":
        return Size(self.bytes + other.bytes, self.inodes + other.inodes)


def size(record: Mapping[str, Any]) -> Size:
    """What the files of a record take."""
    files = record["files"]
    folders = {parent for name in files for parent in Path(name).parents} | {Path(".")}
    return Size(sum(entry["size"] for entry in files.values()), len(files) + len(folders) + 2)


def any_of(root: Path, job: str) -> bool:
    """Whether an artifact of a job was ever dropped."""
    return (root / "artifacts" / job / HINT).exists()


def pin(root: Path, fingerprint: str) -> None:
    """Never drop the artifact of a cell, made or not."""
    (root / "keep").mkdir(parents=True, exist_ok=True)
    (root / "keep" / fingerprint[:SHORT]).touch()
    sync_folder(root / "keep")


def unpin(root: Path, fingerprint: str) -> None:
    """Allow it again."""
    (root / "keep" / fingerprint[:SHORT]).unlink(missing_ok=True)


def is_pinned(root: Path, fingerprint: str) -> bool:
    """Whether a person wants it kept."""
    return (root / "keep" / fingerprint[:SHORT]).exists()


def drop(root: Path, folder: Path, fingerprint: str, who: Mapping[str, Any]) -> bool:
    """Delete the files of a committed artifact, all but its record and log; whether this call did.

    It does not where the artifact is pinned, gone or another's base, or another process has begun to drop it.
    """
    if _stays(root, fingerprint):
        return False
    (folder.parent / HINT).touch()
    try:
        at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return False
    try:
        mark = os.open(DROPPED, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=at)
        with open(mark, "wb") as file:
            file.write(json.dumps(dict(who)).encode())
            file.flush()
            os.fsync(file.fileno())
        os.fsync(at)
        if _stays(root, fingerprint):  # since it was asked; nothing is gone yet, and nobody else goes on for us
            os.unlink(DROPPED, dir_fd=at)
            return False
        _empty(at)
    except FileExistsError:
        return False
    finally:
        os.close(at)
    return True


def _stays(root: Path, fingerprint: str) -> bool:
    return is_pinned(root, fingerprint) or fingerprint[:SHORT] in bases.needed(root)


def finish(folder: Path, alive: Callable[[Mapping[str, Any], float], bool | None]) -> None:
    """Delete what a process that died while it dropped this artifact has left."""
    try:
        at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return
    try:
        mark = os.open(DROPPED, os.O_RDONLY, dir_fd=at)
        with open(mark, "rb") as file:
            who, made = json.loads(file.read()), os.fstat(file.fileno()).st_mtime
        if set(os.listdir(at)) - {RECORD, LOG, DROPPED} and alive(who, made) is False:
            _empty(at)
    except (FileNotFoundError, ValueError):  # made anew just now; or the marker is being written
        return
    finally:
        os.close(at)


def _empty(at: int) -> None:
    for base, folders, names, inner in os.fwalk(".", topdown=False, dir_fd=at):
        kept = {RECORD, LOG, DROPPED} if base == "." else set()
        with suppress(FileNotFoundError):  # another finishes it too
            for name in set(names) - kept:
                os.unlink(name, dir_fd=inner)
            for name in folders:
                os.rmdir(name, dir_fd=inner)


def dropped_attempt(folder: Path) -> int:
    """Which attempt made the artifact that was dropped: a later one makes it anew."""
    return int(read(folder).get("provenance", {}).get("attempt", 0))
