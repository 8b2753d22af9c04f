"""Who may try a cell: `ROOT/claims/<fp12>.<attempt>`, made by link(2) from a finished file and never overwritten.

link(2) is atomic on every file system that clusters share, which `flock`, O_APPEND and O_EXCL are not everywhere.
A claim tells who made it; `liveness` says whether that process still runs, as far as this host can know.
"""

import json
import os
import re
import socket
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.fingerprint import SHORT
from toolkit.manifest.files import sync_folder

NAMES = re.compile(r"^([0-9a-f]+)\.(\d+)$", re.MULTILINE)  # over all names at once: there may be 100,000


def claim(root: Path, fingerprint: str, attempt: int, info: Mapping[str, Any]) -> bool:
    """Claim an attempt (1, 2, ...) at a cell: True for exactly one caller, whatever host it is on.

    Raises:
        ValueError: another cell's fingerprint has the same first digits.
        OSError: the disk is full, or the file system has no hard links.
    """
    folder = root / "claims"
    target = folder / f"{fingerprint[:SHORT]}.{attempt}"
    part = folder / f".{target.name}.{uuid.uuid4().hex}"
    try:
        with open(part, "xb") as file:
            file.write(json.dumps({**info, "fingerprint": fingerprint, "attempt": attempt}).encode())
            file.flush()
            os.fsync(file.fileno())
        won = _link(part, target)
    finally:
        part.unlink(missing_ok=True)
    if not won:
        _check_same_cell(root, fingerprint, attempt)
        return False
    sync_folder(folder)
    return True


def _link(part: Path, target: Path) -> bool:
    try:
        os.link(part, target)
        return True
    except OSError as error:
        # An NFS server that was asked twice, since its first answer got lost, says EEXIST (or fails) although the link
        # was made: the count of names tells.
        if os.stat(part).st_nlink == 2:
            return True
        if isinstance(error, FileExistsError):
            return False
        raise


def _check_same_cell(root: Path, fingerprint: str, attempt: int) -> None:
    other = read_claim(root, fingerprint[:SHORT], attempt).get("fingerprint")
    if other != fingerprint:
        raise ValueError(
            f"cells {fingerprint} and {other} share their first {SHORT} digits, which name claims:"
            " add a field to the spec of one of the two"
        )


def read_claim(root: Path, fp12: str, attempt: int) -> dict[str, Any]:
    """What the maker of a claim said of itself.

    Raises:
        FileNotFoundError: there is no such claim.
    """
    info: dict[str, Any] = json.loads((root / "claims" / f"{fp12}.{attempt}").read_bytes())
    return info


def made(root: Path, fp12: str, attempt: int) -> float:
    """When a claim was made, by the clock of the root's file system.

    Raises:
        FileNotFoundError: there is no such claim.
    """
    return (root / "claims" / f"{fp12}.{attempt}").stat().st_mtime


def attempts(root: Path, fp12: str) -> list[tuple[int, dict[str, Any]]]:
    """The claimed attempts at a cell and who made them, first to last."""
    numbers = sorted(number for name, number in _names(root) if name == fp12)
    return [(number, read_claim(root, fp12, number)) for number in numbers]


def all_claims(root: Path) -> dict[str, int]:
    """fp12 -> highest attempt that is claimed, from the names in one folder."""
    highest: dict[str, int] = {}
    for name, number in _names(root):
        highest[name] = max(number, highest.get(name, 0))
    return highest


def _names(root: Path) -> list[tuple[str, int]]:
    try:
        names = os.listdir(root / "claims")
    except FileNotFoundError:
        return []  # nothing was ever launched in this root
    return [(name, int(number)) for name, number in NAMES.findall("\n".join(names))]


def identity(pid: int | None = None) -> dict[str, Any]:
    """Who this process (or a child of it) is, so that `liveness` can tell it from a later one with the same id."""
    pid = pid or os.getpid()
    start = _start_ticks(pid)
    return {
        "host": socket.gethostname(),
        "boot_id": _boot_id(),
        "pid_namespace": _pid_namespace(),
        "pid": pid,
        "start_ticks": start,
    }


def liveness(info: Mapping[str, Any]) -> bool | None:
    """Whether the process of `identity()` still runs: True, False, or None where this host cannot know."""
    if info["boot_id"] == _boot_id():
        return _runs(info) if info["pid_namespace"] == _pid_namespace() else None
    if info["host"] == socket.gethostname() and not info["host"].startswith("localhost"):
        return False  # this host was started anew since
    return None


def _runs(info: Mapping[str, Any]) -> bool | None:
    start = _start_ticks(info["pid"])
    if start is not None:
        return start == info["start_ticks"]
    try:
        os.kill(info["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return None  # /proc hides other users' processes (hidepid): one has this id, perhaps the one that is meant
    return False  # a zombie: it ended, and nobody has collected it


def _start_ticks(pid: int) -> int | None:
    """Field 22 of /proc/<pid>/stat (clock ticks after boot); None if the process has ended or cannot be seen."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the name in field 2 may hold spaces and brackets
    return None if fields[0] in "ZX" else int(fields[19])


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _pid_namespace() -> str:
    return os.readlink("/proc/self/ns/pid")
