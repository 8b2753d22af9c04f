"""What Slurm costs: submitting a large study, files a job leaves, a warm worker against one sbatch a stage.

    python -m tests.bench.cluster          starts a Slurm of its own on this machine (as root, with Debian's packages)

Plain submitit is measured beside it, in the same run on the same cluster: one `submit` a stage, as its documentation shows.
"""

import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from slurm import arrays, profiles, submissions
from slurm.attempt import Child, Task
from tests.cluster.cluster import Cluster
from tests.cluster.config import Options
from tests.cluster.founding import create, missing
from toolkit.stage import Group, Resources
from toolkit.study import Cell, Stage, Study

CELLS, STAGES, PLAIN, SMALL, ROUNDS = 1000, 6, 100, 60, 3


def wide(cells: int, stages: int) -> Study:
    """`stages` stages in a chain, each with one cell for every one of `cells` seeds."""
    chain = {
        "stage0": Stage(job="prepare", spec={"dataset": "bios", "people": 8}, axes={"seed": list(range(cells))})
    }  # fmt: skip
    for i in range(1, stages):
        spec = {"split": "pretrain", "vocab_size": 300 + i}
        chain[f"stage{i}"] = Stage(job="tokenizer", inputs={"data": "stage0"}, spec=spec)
    return Study(name="wide", stages=chain)


def small() -> Study:
    """Sixty data sets of a few people: stages of a fraction of a second."""
    spec = {"dataset": "bios", "people": 8, "biographies": 1}
    return Study(name="small", stages={"people": Stage(job="prepare", spec=spec, axes={"seed": list(range(SMALL))})})


def place(partition: str, hours: float, workers: int, cpus: int) -> arrays.Cluster:
    words: dict[str, Any] = {
        "poll_seconds": 5, "setup": ["export OMP_NUM_THREADS=1"],
        "shapes": {"cpu": {"partition": partition, "cpus": cpus, "memory": 1.5, "hours": hours, "workers": workers}},
        "jobs": {"default": {"shape": "cpu", "threads": 1}},
    }  # fmt: skip
    return arrays.Cluster(name="bench", profile=profiles.read(words), words=words)


def counted(folder: Path) -> Path:
    """A folder for the front of PATH whose `sbatch` counts its calls."""
    real = shutil.which("sbatch")
    (folder / "bin").mkdir()
    script = folder / "bin" / "sbatch"
    script.write_text(f"#!/bin/sh\necho x >> '{folder}/calls'\nexec {real} \"$@\"\n")
    script.chmod(0o755)
    return folder / "bin"


def submitting(folder: Path) -> None:
    """A study of 6,000 cells, submitted with its workers held: only the submission is timed."""
    study, root = wide(CELLS, STAGES), folder / "wide"
    bin_ = counted(folder)
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{bin_}:{before}"
    began = time.monotonic()
    cells = submissions.cells_of(root, study)
    arrays.launch(root, study, cells, place("main", 4, 64, 1), {})
    ours = time.monotonic() - began
    calls = (folder / "calls").read_text().count("x")
    os.environ["PATH"] = before
    subprocess.run(["scancel", "--user", os.environ.get("USER", "root")], check=True)
    began = time.monotonic()
    plain(folder / "plain", [lambda: None] * PLAIN)
    theirs = (time.monotonic() - began) / PLAIN * len(cells)
    subprocess.run(["scancel", "--user", os.environ.get("USER", "root")], check=True)
    print(f"{len(cells):,} cells in {STAGES} stages: {calls} sbatch calls, {ours:.1f} s from the study to the queue")
    print(
        f"plain submitit, one submit a stage: {theirs:,.0f} s (from {PLAIN} of them): {theirs / ours:.0f} times as long"
    )


def plain(folder: Path, work: list[Callable[[], Any]], partition: str = "main", cpus: int = 1) -> list[Any]:
    import submitit

    executor = submitit.SlurmExecutor(folder)
    setup = ["export OMP_NUM_THREADS=1"]
    executor.update_parameters(time=10, partition=partition, cpus_per_task=cpus, mem="1536M", setup=setup)
    return [executor.submit(one) for one in work]


def alone(root: Path, cell: Cell) -> str:
    """One cell in a job of its own, run and committed by the code that a worker's child runs."""
    task = Task(
        root=root, study="alone", cell=cell, number=1, resources=Resources(), group=Group(), stopping=lambda: False
    )  # fmt: skip
    (task.work / "state").mkdir(parents=True)
    task.out.mkdir()
    return str(Child(task).report()["event"])


def warm_against_cold(folder: Path) -> None:
    """Sixty small stages: two warm workers, and sixty jobs of which two run at a time; wall-clock from launch to done."""
    ours, theirs = [], []
    for number in range(ROUNDS):
        study, root = small(), folder / f"warm-{number}"
        cells = submissions.cells_of(root, study)
        began = time.monotonic()
        arrays.launch(root, study, cells, place("main", 1, 2, 2), {})
        wait_for(root, SMALL)
        ours.append(time.monotonic() - began)
        files = sum(1 for _ in (root / "submissions").rglob("*")) + sum(1 for _ in (root / "log").rglob("*.jsonl"))
        root = folder / f"cold-{number}"
        (root / "artifacts").mkdir(parents=True)
        began = time.monotonic()
        plain(folder / f"jobs-{number}", [Alone(root, cell) for cell in cells], cpus=2)
        wait_for(root, SMALL)
        theirs.append(time.monotonic() - began)
    print(f"{files} files of 2 jobs beside artifacts, with the study, its environment and the batch file")
    ratio = statistics.median(theirs) / statistics.median(ours)
    print(
        f"{SMALL} small stages, two at a time: {shown(ours)} with two warm workers, {shown(theirs)} with one sbatch each"
    )
    print(f"ratio of medians {ratio:.1f}")


class Alone:
    """A call that submitit can pickle."""

    def __init__(self, root: Path, cell: Cell) -> None:
        self.root, self.number = root, int(cell.coords["seed"])

    def __call__(self) -> str:
        cells = submissions.cells_of(self.root, small())
        return alone(self.root, cells[self.number])


def shown(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.1f} s ({min(seconds):.1f}-{max(seconds):.1f})"


def wait_for(root: Path, count: int) -> None:
    while len(list(root.glob("artifacts/*/*"))) < count:
        time.sleep(0.05)


def main() -> None:
    if lacking := missing():
        raise SystemExit(f"no Slurm here: {', '.join(lacking)} not installed; see tests/cluster/README.md")
    folder = Path(tempfile.mkdtemp(prefix="tidemark-bench-"))
    folder.chmod(0o755)
    # One node with 4 CPUs: two jobs of two CPUs run at a time.
    cluster: Cluster = create(folder / "slurm", Options(nodes=1, cpus=4, gpus=0))
    try:
        cluster.up()
        os.environ.update({key: cluster.env[key] for key in ("PATH", "SLURM_CONF")})
        os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
        cluster.run("scontrol", "update", f"nodename={cluster.nodes[0]}", "state=drain", "reason=bench")
        submitting(folder)
        cluster.run("scontrol", "update", f"nodename={cluster.nodes[0]}", "state=resume")
        warm_against_cold(folder)
    finally:
        cluster.down(wipe=True)
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
