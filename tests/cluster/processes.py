"""Processes that belong to a folder: started with a mark in their environment, found and ended by it.

A number in a pid file is believed only if that process carries the mark, so that a number that was given out again, or a
pid file that a killed run left behind, never costs somebody else's process its life.
"""

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

MARK = "TIDEMARK_CLUSTER"
SEARCH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"  # daemons are not on everybody's PATH
Found = TypeVar("Found")


def until(look: Callable[[], Found], seconds: float, what: str) -> Found:
    """Wait until `look` finds something."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.05)
    return found


def environment(pid: int) -> set[bytes]:
    """The variables that a process was started with; none if it has ended (a zombie has none) or is another user's."""
    try:
        return set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    except OSError:
        return set()


def children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


@dataclass(frozen=True, kw_only=True)
class Processes:
    """The processes of `folder`, each with a name; `folder`/run/NAME.pid has its number."""

    folder: Path

    @property
    def mark(self) -> str:
        return f"{MARK}={self.folder}"

    def spawn(self, name: str, *words: object, extra: Mapping[str, str]) -> int:
        """Start a daemon in a session of its own, without a terminal and without our standard output."""
        log = str(self.folder / "log" / "start.log")
        program = shutil.which("env", path=SEARCH)
        assert program
        pid = os.posix_spawn(
            program,
            [
                "env",
                "-C",
                str(self.folder),
                *map(str, words),
            ],  # `env` becomes the daemon, so the number is the daemon's
            {"PATH": SEARCH, "LC_ALL": "C.UTF-8", **extra, MARK: str(self.folder)},
            setsid=True,
            setsigdef=[signal.SIGPIPE],  # Python ignores it, and ignored it would be inherited
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
        )
        (self.folder / "run" / f"{name}.pid").write_text(str(pid))
        return pid

    def pid(self, name: str) -> int:
        """The number of a process that lives; 0 if it does not."""
        try:
            pid = int((self.folder / "run" / f"{name}.pid").read_text())
        except (FileNotFoundError, ValueError):
            return 0
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)  # if it is a child of ours that has ended, it shall not stay a zombie
        return pid if self.mark.encode() in environment(pid) else 0

    def stop(self, name: str, number: int = signal.SIGTERM, seconds: float = 20) -> None:
        """Signal a process and wait for its end; what does not end is killed."""
        pid = self.pid(name)
        if not pid:
            return
        kill(pid, number)
        try:
            until(lambda: not self.pid(name), seconds, name)
        except TimeoutError:
            kill(pid)
            until(lambda: not self.pid(name), seconds, f"{name} after SIGKILL")

    def sweep(self, extra: bytes) -> None:
        """Kill whatever still carries the mark, and the jobs started with the variable `extra`; not ourselves."""

        def left() -> list[int]:
            found = []
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit() and int(entry.name) != os.getpid():
                    seen = environment(int(entry.name))
                    job = extra in seen and any(variable.startswith(b"SLURM_JOB_ID=") for variable in seen)
                    if self.mark.encode() in seen or job:
                        found.append(int(entry.name))
            for pid in found:
                kill(pid)
            return found

        until(lambda: not left(), 20, f"the end of what was started for {self.folder}")
