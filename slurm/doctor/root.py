"""The root and the internet, as this host sees them."""

import getpass
import os
from math import inf
from pathlib import Path

from slurm import arrays, quota
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
    """What this user's quota leaves of blocks and inodes, where somebody knows."""
    try:
        space, files = quota.left(root)
    except TimeoutError as error:
        mend = "ask for it by hand, with the cluster's own tool"
        return [Line(level="warning", where="root", what="quota", found=str(error), needed="an answer", mend=mend)]
    lines = [_enough("quota of space", space, BYTES, FEW_BYTES, "GB")] if space != inf else []
    return lines + ([_enough("quota of inodes", files, INODES, FEW_INODES, "")] if files != inf else [])


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
