"""A checkout with one more job, and the command line of it: what the tests of this folder run, in processes of its own.

The added job `probe` does what its spec says (fail, crash, wait); that it is one new file and no other edit is itself
what the design promises.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.manifest.log import Reader

HOME = Path(__file__).resolve().parents[2]
QUIET = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "NO_COLOR": "1",
}
PROBE = '''
"""Does what it is told."""

import os
import signal
import sys
import time
from dataclasses import dataclass

from toolkit.stage import Artifact, Interrupted

VERSION = 1
WARM = ("colorsys",)  # a module that nothing else imports


@dataclass(frozen=True, kw_only=True)
class Spec:
    do: str = ""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Inputs:
    one: Artifact | None = None
    two: Artifact | None = None


def run(spec, inputs, out, ctx):
    print(f"the probe is told to {spec.do or 'do nothing'}")
    imported = "colorsys" in sys.modules
    (out / "note.txt").write_text(f"{spec.do} {spec.seed}")
    if spec.do == "raise":
        raise RuntimeError("the probe broke")
    if spec.do == "refuse":
        raise ValueError("the probe refuses")
    if spec.do == "need memory":
        raise MemoryError("no room for the probe")
    if spec.do == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if spec.do == "leave":
        os._exit(7)
    if spec.do == "die once" and not (ctx.state / "died").exists():
        (ctx.state / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if spec.do == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if spec.do == "eat" and ctx.resources.halvings < 2:
        held = b"x" * (600 << 20)
        time.sleep(20)
    if spec.do == "fault once" and not (ctx.state / "fault").exists():
        (ctx.state / "fault").touch()
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered")
    if spec.do == "look":
        (out / "seen.txt").write_text("\\n".join(f"{key}={value}" for key, value in sorted(os.environ.items())))
    if spec.do == "be deaf":
        time.sleep(60)
    if spec.do == "need 3 MiB":
        (out / "first").write_bytes(bytes(1 << 20))
        (out / "second").write_bytes(bytes(2 << 20))
    deadline = time.monotonic() + 60
    while spec.do == "wait" and not (ctx.state / "go").exists():
        assert time.monotonic() < deadline, "nobody came"
        ctx.progress(3, 10, loss=1.5)
        time.sleep(0.02)
        if ctx.stop_requested:
            (ctx.state / "saved").touch()
            raise Interrupted
    given = {"processes": ctx.resources.processes, "threads": ctx.resources.threads, "halvings": ctx.resources.halvings}
    return {"imported": imported, "parent": os.getppid(), "resumed": (ctx.state / "saved").exists(), **given}
'''


def make_house(folder: Path) -> Path:
    """A copy of the three packages and the configurations, with the job `probe`."""
    for package in ("toolkit", "jobs", "slurm"):
        shutil.copytree(HOME / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(HOME / "configs", folder / "configs")
    (folder / "jobs" / "probe.py").write_text(PROBE)
    return folder


@dataclass(kw_only=True)
class Lab:
    """A root, a folder for studies, and the command line of the checkout `house`."""

    house: Path
    folder: Path
    place: Path | None = None  # of the root; in `folder` by default
    started: list["subprocess.Popen[str]"] = field(default_factory=list)

    @property
    def root(self) -> Path:
        return self.place or self.folder / "root"

    def study(self, stages: Mapping[str, Any], name: str = "lab") -> str:
        """A study file (JSON is YAML)."""
        path = self.folder / f"{name}.yaml"
        path.write_text(json.dumps({"name": name, "stages": stages}, indent=1))
        return str(path)

    def _words(self, words: Sequence[object]) -> dict[str, Any]:
        env = {**os.environ, **QUIET, "PYTHONPATH": str(self.house), "TIDEMARK_ROOT": str(self.root)}
        return {
            "args": [sys.executable, "-m", "slurm.cli", *map(str, words)],
            "env": env,
            "cwd": self.folder,  # `python -m` puts it first on the path: it must not be the real checkout
            "text": True,
        }

    def run(self, *words: object, code: int = 0, answer: str = "") -> "subprocess.CompletedProcess[str]":
        """Run a command to its end; it must exit with `code`."""
        done = subprocess.run(**self._words(words), capture_output=True, input=answer, timeout=120, check=False)
        assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def said(self, *words: object, code: int = 0, answer: str = "") -> str:
        """What a command prints, to both streams, in one line (a terminal wraps where it likes)."""
        done = self.run(*words, code=code, answer=answer)
        return " ".join((done.stdout + done.stderr).split())

    def json(self, *words: object) -> Any:
        return json.loads(self.run(*words, "--json").stdout)

    def start(self, *words: object, stdout: int = subprocess.PIPE) -> "subprocess.Popen[str]":
        """Start a command in a process group of its own."""
        process = subprocess.Popen(
            **self._words(words),
            stdout=stdout,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_hear_interrupts,
        )
        self.started.append(process)
        return process

    def events(self, study: str = "lab") -> list[dict[str, Any]]:
        """All events so far, by time (one host)."""
        return sorted(Reader(self.root, study).new_events(), key=lambda event: event["time"])

    def told(self, kind: str, study: str = "lab") -> list[str]:
        """The cells of all events of one kind, in order."""
        return [event["cell"] for event in self.events(study) if event["event"] == kind]

    def worker(self, study: str = "lab") -> int:
        """The process id of the worker that was started last; waits for it."""

        def found() -> int:
            return next((e["who"]["pid"] for e in self.events(study)[::-1] if e["event"] == "worker-started"), 0)

        return until(found)

    def child(self, cell: str, attempt: int = 1, study: str = "lab") -> int:
        """The process id of the child that waits in `cell`."""
        event = until(
            lambda: next((e for e in self.events(study) if e.get("cell") == cell and e.get("attempt") == attempt), None)
        )
        until(lambda: (self.work(event["fingerprint"]) / "state" / "progress.json").exists())
        told = {e["writer"]: e["who"]["pid"] for e in self.events(study) if e["event"] == "worker-started"}
        return until(lambda: next(iter(children(told[event["writer"]])), 0))

    def work(self, fingerprint: str) -> Path:
        return self.root / "work" / fingerprint[:12]

    def release(self) -> None:
        """Let every probe that waits go on."""
        for state in self.root.glob("work/*/state"):
            (state / "go").touch()

    def close(self) -> None:
        """End what a failed test left running."""
        for process in self.started:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        for pid in processes_of(self.folder):
            os.kill(pid, signal.SIGKILL)


def _hear_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell makes its background jobs, such as a CI run, deaf to it


def until(look: Callable[[], Any], seconds: float = 60) -> Any:
    """Wait until `look` finds something."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)
    return found


def children(pid: int) -> list[int]:
    """The children of a process; none if it has ended."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def processes_of(folder: Path) -> list[int]:
    """Live processes whose command line or environment of submitit names a path under `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            if str(folder).encode() in words and alive(int(entry.name)):
                found.append(int(entry.name))
    return found
