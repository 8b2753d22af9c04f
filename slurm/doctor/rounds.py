"""All checks in order. Whatever happens, also when interrupted, jobs are cancelled and files removed at the end; what a
doctor who was killed left behind goes at the start of the next.
"""

import json
import os
import shutil
import signal
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from slurm.doctor import nodes, probe, root, shape, site, verdict
from slurm.doctor.line import Line
from slurm.doctor.nodes import PREFIX, Visit
from slurm.profiles import Profile
from toolkit.manifest import claims

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
WHO = "who"  # the file that says whose folder it is
TRIES = 10  # to remove a folder that NFS keeps files in for those who have them open
Tell = Callable[[Line], None]


def examine(place: Path, profile: Profile, names: Sequence[str], seconds: float, tell: Tell) -> None:
    """Go through all checks of a profile's shapes `names` with `place` as root, and tell each line as it is known.

    seconds: that jobs may wait to start.
    """
    endpoint = os.environ.get("HF_ENDPOINT", probe.HUB)
    unmade = _slurm(place, profile, names, tell) if profile.scheduler == "slurm" else {}
    for line in root.internet(profile, endpoint):
        tell(line)
    with _hearing(), _guest(place, profile, tell) as folder:
        if folder is None:
            return
        lines = root.storage(place, batch=profile.scheduler == "slurm")
        for line in lines:
            tell(line)
        if any(line.what == "path" and line.level == "failed" for line in lines):
            unmade = dict.fromkeys(names, "the root's path cannot stand in a batch file")
        if seconds == 0:
            unmade = dict.fromkeys(names, "--wait is 0") | unmade
        _visit(folder, profile, names, unmade, seconds, endpoint, tell)


def _slurm(place: Path, profile: Profile, names: Sequence[str], tell: Tell) -> dict[str, str]:
    """What Slurm says; shapes whose jobs need not be tried -> why."""
    lines, known = site.ask(profile, names)
    for line in lines:
        tell(line)
    if known is None:
        return dict.fromkeys(names, "Slurm does not answer")
    unmade = {}
    for name in names:
        lines = shape.look(place, profile, name, known)
        for line in lines:
            tell(line)
        if any(line.level == "failed" and line.what in ("partition", "sbatch") for line in lines):
            unmade[name] = "Slurm would not run such a job"
    return unmade


def _visit(
    folder: Path,
    profile: Profile,
    names: Sequence[str],
    unmade: dict[str, str],
    seconds: float,
    endpoint: str,
    tell: Tell,
) -> None:
    """Send the jobs, stay with them, and tell what they found."""
    here = profile.scheduler == "local"
    submit, ask = (nodes.submit_here, nodes.ask_here) if here else (nodes.submit, nodes.ask_slurm)
    visits: list[Visit] = []
    patience = 0.0
    try:
        for name in names:
            visit = Visit.of(folder, name)
            visit.unmade = unmade.get(name, "")
            visits.append(visit)
            if not visit.unmade:
                submit(visit, profile, endpoint)
        nodes.attend(visits, seconds, ask)
        patience = nodes.LAST_SECONDS if all(visit.told for visit in visits if visit.job) else 0.0
        for visit in visits:
            details = {} if here or visit.unmade else nodes.details(visit)
            for line in verdict.judge(visit, profile, details):
                tell(line)
    finally:
        with _deaf():
            left = nodes.stop_here(visits) if here else nodes.cancel([v.name for v in visits if v.tasks], patience)
            if left:
                tell(_left(left))


def _left(found: str) -> Line:
    return Line(
        level="failed", where="doctor", what="traces", found=found, needed="none", mend="remove them by hand"
    )  # fmt: skip


@contextmanager
def _guest(place: Path, profile: Profile, tell: Tell) -> Iterator[Path | None]:
    """A folder under the root while the doctor is there; neither it nor a root that was not there before stays. None
    if none can be made."""
    made = [folder for folder in (place, *place.parents) if not folder.exists()]
    folder = place / f"{PREFIX}{uuid.uuid4().hex[:12]}"
    try:
        try:
            folder.mkdir(parents=True)
            (folder / WHO).write_text(json.dumps(claims.identity()))
        except OSError as error:
            mend = "give a folder that you can write to, with --root or TIDEMARK_ROOT"
            found = f"{place}: {error.strerror}"
            tell(Line(level="failed", where="root", what="folder", found=found, needed="writable", mend=mend))
            yield None
        else:
            _sweep(place, profile)
            yield folder
    finally:
        with _deaf():
            if not _removed(folder):
                tell(_left(str(folder)))
            for folder in made:
                with suppress(OSError):
                    folder.rmdir()


def _removed(folder: Path) -> bool:
    for _ in range(TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return True
        time.sleep(0.5)
    return False


def _sweep(place: Path, profile: Profile) -> None:
    """End what a doctor of this host began that was killed."""
    for left in place.glob(f"{PREFIX}*"):
        try:
            who = json.loads((left / WHO).read_text())
        except (OSError, ValueError):
            continue
        if claims.liveness(who) is False:
            names = [Visit.of(left, path.name).name for path in left.iterdir() if path.is_dir()]
            if profile.scheduler == "local" or not names or not nodes.cancel(names):
                _removed(left)


@contextmanager
def _hearing() -> Iterator[None]:
    """A kill, or the end of the login, is an interrupt: what was begun is cleaned up."""

    def interrupt(_number: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    with _handling(interrupt):
        yield


@contextmanager
def _deaf() -> Iterator[None]:
    """Nothing interrupts the cleaning up."""
    with _handling(signal.SIG_IGN):
        yield


@contextmanager
def _handling(handler: Any) -> Iterator[None]:
    previous = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
