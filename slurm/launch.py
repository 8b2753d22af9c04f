"""Launch a study on this machine: workers through submitit's local executor, which run the code that Slurm jobs run.

The submission is written before and after the workers are started, so that a launch killed in between leaves a trace,
and a second launch of a study that is being run is refused.
"""

import os
import re
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slurm import submissions
from slurm.worker import Work
from toolkit import provenance
from toolkit.manifest import adopt, claims
from toolkit.manifest.files import check_root, write_atomic
from toolkit.plan import folder
from toolkit.study import Cell, Study

MINUTES = 60 * 24 * 365  # submitit wants a time limit; on one's own machine there is none


class AlreadyRunning(ValueError):
    """Another launch of the study is at work."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A submission and the submitit jobs of its workers."""

    number: int
    jobs: Sequence[Any]

    def alive(self) -> bool:
        """Whether a worker still runs."""
        return any(not job.done() for job in self.jobs)

    def stop(self, seconds: float = 10.0) -> None:
        """Ask the workers to end, so that training saves its state, and kill those that have not ended in time."""
        for job in self.jobs:
            _signal(int(job.job_id), signal.SIGTERM)  # submitit's controller passes it on to its worker
        deadline = time.monotonic() + seconds
        while self.alive() and time.monotonic() < deadline:
            time.sleep(0.1)
        for job in self.jobs:
            if not job.done():
                controller = int(job.job_id)
                for worker in Path(f"/proc/{controller}/task/{controller}/children").read_text().split():
                    _signal(int(worker), signal.SIGKILL)
        while self.alive():
            time.sleep(0.1)

    def complaints(self) -> list[str]:
        """The last lines of each worker that died of an error instead of running out of work."""
        found = []
        for job in self.jobs:
            if job.done() and not job.paths.result_pickle.exists():
                found.append(f"worker {job.job_id} was killed, or had no room to say how it ended")
            elif job.done() and job.exception() is not None:
                text = str(job.exception()).strip()
                said = re.search(r"^ValueError: (.+?)\n\n?-{5}", text, re.MULTILINE | re.DOTALL)  # for a user: no trace
                found.append(said[1].strip() if said else f"worker {job.job_id}: {text[-1500:]}")
        return found


def adopt_folders(root: Path, cells: Sequence[Cell]) -> None:
    """Make the files and folders that a study points to artifacts, before any worker looks for them."""
    for cell in cells:
        if cell.source is not None and not folder(root, cell).is_dir():
            adopt.adopt(root, path=cell.source, label=cell.label)


def launch_local(
    root: Path, study: Study, cells: Sequence[Cell], workers: int, words: Mapping[str, Any], options: Mapping[str, Any]
) -> Launch:
    """Start `workers` worker processes for a study and return at once. `words` are the profile's.

    Raises:
        AlreadyRunning: another launch of this study is at work.
        ValueError: the root cannot be written.
    """
    import submitit

    check_root(root)
    (shape,) = words["shapes"]
    while True:
        number = submissions.next_number(root, study.name)
        running = submissions.active(root, study.name)
        if running:
            raise AlreadyRunning(describe_launch(root, study.name, running[-1]))
        content = {"options": {**options, "workers": workers}, "profile": words}
        if submissions.prepare(root, study, number, content):
            break
    adopt_folders(root, cells)
    lock = submissions.folder(root, study.name) / f"{number}-environment.txt"
    write_atomic(lock, "\n".join(provenance.environment()).encode())
    gpus = visible_gpus()
    executor = submitit.LocalExecutor(submissions.folder(root, study.name) / f"{number}-workers")
    started = []
    # Ctrl-C reaches every process of the terminal; ignored here, it is for the launcher alone, which stops the workers.
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for i in range(workers):
            mine = gpus[i::workers]
            executor.update_parameters(timeout_min=MINUTES, gpus_per_node=len(mine), visible_gpus=mine)
            started.append(executor.submit(Work(), root, study.name, number, shape))
    finally:
        signal.signal(signal.SIGINT, interrupt)
    submissions.submitted(root, study.name, number, [claims.identity(int(job.job_id)) for job in started])
    return Launch(number=number, jobs=started)


def describe_launch(root: Path, study: str, number: int) -> str:
    """A sentence on a launch that is at work."""
    content = submissions.read(root, study, number)
    who, cluster = content["who"], content.get("cluster")
    return (
        f"study {study!r} is being run already: launch {number}, started by process {who['pid']} on {who['host']}"
        f"{f' for the cluster {cluster}' if cluster else ''};"
        " `tidemark status STUDY --watch` shows it; launch again once it has ended"
    )


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # it has just ended
        os.kill(pid, number)


def visible_gpus() -> list[int]:
    """The GPUs that this process may use, without importing torch; submitit hides all that are not named to it."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [int(number) for number in chosen.split(",") if number.strip().isdigit()]
    try:
        return list(range(len(os.listdir("/proc/driver/nvidia/gpus"))))
    except FileNotFoundError:
        return []


def follow(launch: Launch, draw: Callable[[], object], seconds: float = 0.5) -> None:
    """Call `draw` until the workers have ended, and once more."""
    while launch.alive():
        started = time.monotonic()
        draw()
        time.sleep(max(seconds, 10 * (time.monotonic() - started)))  # the workers need this machine more
    draw()
