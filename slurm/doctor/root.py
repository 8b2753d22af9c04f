"""The root and the internet, as this host sees them."""

import getpass
import os
import re
import shutil
import subprocess
from math import inf
from pathlib import Path

from slurm import arrays, queue
from slurm.doctor import probe
from slurm.doctor.line import Level, Line, ok
from slurm.profiles import Profile
from toolkit.manifest.files import TREE

BYTES, FEW_BYTES = 1 << 30, 50 << 30  # free under the root: less is useless; less is little for checkpoints
INODES, FEW_INODES = 1000, 100_000


def storage(root: Path, *, batch: bool) -> list[Line]:
    """The root from here: its path, free space, free inodes, quota. It is there already, and can be written."""
    lines = []
    if batch:
        try:
            arrays.check_path(root)
            lines.append(ok("root", "path", str(root)))
        except ValueError as error:
            mend = "choose another folder, with --root or TIDEMARK_ROOT"
            lines.append(Line(level="failed", where="root", what="path", found=str(error).split(":")[0], mend=mend))
    closed = [name for name in TREE if (root / name).is_dir() and not os.access(root / name, os.W_OK | os.X_OK)]
    if closed:
        mend = "ask their owner for permission (a common group, `chmod g+ws`), or choose another root"
        found = f"{', '.join(closed)} cannot be written by {getpass.getuser()}"
        lines.append(Line(level="failed", where="root", what="folders", found=found, needed="writable", mend=mend))
    space = os.statvfs(root)
    lines.append(_enough("free space", space.f_bavail * space.f_frsize, BYTES, FEW_BYTES, "GB"))
    if space.f_files:  # some file systems make inodes as they go, and count none
        lines.append(_enough("free inodes", space.f_favail, INODES, FEW_INODES, ""))
    return lines + _quota(root)


def _enough(what: str, left: float, least: float, few: float, unit: str) -> Line:
    scale = 1 << 30 if unit else 1
    found, needed = (f"{value / scale:,.0f} {unit}".strip() for value in (left, few))
    if left >= few:
        return ok("root", what, found, needed)
    level: Level = "failed" if left < least else "warning"
    mend = "free some (`tidemark clean` shows what nothing needs), ask for a larger quota, or choose another root"
    return Line(level=level, where="root", what=what, found=found, needed=needed, mend=mend)


def _quota(root: Path) -> list[Line]:
    """What this user's quota leaves of blocks and inodes, where the tools that know it are installed."""
    device, mount, kind = mounted(root)
    if kind == "lustre" and shutil.which("lfs"):
        words = ["lfs", "quota", "-q", "-u", getpass.getuser(), mount]
    elif kind != "lustre" and shutil.which("quota"):
        words = ["quota", "-w", "-p", "-u"]
    else:
        return []
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=queue.SECONDS, check=False)
    except subprocess.TimeoutExpired:
        mend = "ask for it by hand, with the cluster's own tool"
        found = f"{words[0]} did not answer within {queue.SECONDS} s"
        return [Line(level="warning", where="root", what="quota", found=found, needed="an answer", mend=mend)]
    return [
        _enough(what, left, least, few, unit)
        for name, blocks, files in quotas(done.stdout) if name in (device, mount)
        for what, left, least, few, unit in (
            ("quota of space", blocks, BYTES, FEW_BYTES, "GB"), ("quota of inodes", files, INODES, FEW_INODES, ""),
        )
        if left != inf
    ]  # fmt: skip


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


def internet(profile: Profile, endpoint: str) -> list[Line]:
    """Whether this host reaches the Hub: it has to where no shape does, if a study downloads anything."""
    if profile.scheduler == "slurm" and any(shape.internet for shape in profile.shapes.values()):
        return []
    wrong = probe.unreachable(endpoint)
    if not wrong:
        return [ok("this host", "internet", f"{endpoint} takes connections", "for downloads, which run here")]
    mend = "only downloads need it: launch where there is internet, set https_proxy, or HF_ENDPOINT to a mirror"
    needed = f"{endpoint}, for downloads, which run here"
    return [Line(level="warning", where="this host", what="internet", found=wrong, needed=needed, mend=mend)]
