"""What this user's quota leaves of a file system, where the tools that know it are installed."""

import getpass
import re
import shutil
import subprocess
from math import inf
from pathlib import Path

SECONDS = 30  # that a tool may take: those of large file systems ask many servers


def left(root: Path) -> tuple[float, float]:
    """Bytes and inodes that the quota leaves under a folder; infinitely many where there is none or nobody can be
    asked.

    Raises:
        TimeoutError: the tool does not answer.
    """
    device, mount, kind = mounted(root)
    if kind == "lustre" and shutil.which("lfs"):
        words = ["lfs", "quota", "-q", "-u", getpass.getuser(), mount]
    elif kind != "lustre" and shutil.which("quota"):
        words = ["quota", "-w", "-p", "-u"]
    else:
        return inf, inf
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"{words[0]} did not answer within {SECONDS} s") from None
    rows = [(space, files) for name, space, files in quotas(done.stdout) if name in (device, mount)]
    return min((space for space, _ in rows), default=inf), min((files for _, files in rows), default=inf)


def check(root: Path, size: int, inodes: int) -> None:
    """
    Raises:
        ValueError: the quota leaves less.
        TimeoutError: the tool does not answer.
    """
    space, files = left(root)
    if size > space or inodes > files:
        raise ValueError(
            f"{size / 1e9:,.1f} GB in {inodes:,} files are to be fetched, and the quota under {root} leaves"
            f" {space / 1e9:,.1f} GB and {files:,.0f} files: free some (`tidemark clean` shows what), or select fewer"
        )


def quotas(text: str) -> list[tuple[str, float, float]]:
    """(file system, bytes left, inodes left) of each row that `quota -w -p` or `lfs quota -q` prints: name, blocks of
    1 KiB, soft limit, hard limit, grace, then the same for files. No limit is 0, and infinitely much is left."""
    count = r"(\d+)\*?\s+(\d+)\s+(\d+)\s+\S+"
    found = []
    for name, *numbers in re.findall(rf"^\s*(\S+)\s+{count}\s+{count}\s*$", text, re.M):
        used, soft, hard, files, soft_files, hard_files = map(int, numbers)
        space, number = hard or soft, hard_files or soft_files
        found.append((name, (space - used) * 1024.0 if space else inf, float(number - files) if number else inf))
    return found


def mounted(path: Path) -> tuple[str, str, str]:
    """Device, mount point and type of the file system that a path is in."""
    rows = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    found = [(mount.encode().decode("unicode_escape"), device, kind) for device, mount, kind, *_ in rows]
    mount, device, kind = max((row for row in found if path.is_relative_to(row[0])), key=lambda row: len(row[0]))
    return device, mount, kind
