"""The command that stops a study, a stage or a cell."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from slurm import queue, submissions
from slurm.places import latest
from slurm.queue import Queue
from slurm.terminal import DEFAULT_ROOT, Opened, Root, Sets, StudyPath, find_cells, open_study, out


def cancel(
    study: StudyPath,
    cells: Annotated[
        list[str] | None, typer.Argument(metavar="[CELL]...", help="Cells or stages; the whole study by default.")
    ] = None,
    root: Root = DEFAULT_ROOT,
    sets: Sets = None,
    now: Annotated[bool, typer.Option("--now", help="Do not let running stages save: end the jobs at once.")] = False,
) -> None:
    """Stop a study, a stage or a cell. What runs saves first; what is done stays; launching again goes on from there.

    Example: `tidemark cancel configs/studies/quickstart.yaml 'tuned[step=100]' scores`
    """
    opened = open_study(study, root, sets)
    name = opened.study.name
    active = submissions.active(opened.root, name)
    if not active:
        raise ValueError(f"no launch of {name!r} is at work under {opened.root}: there is nothing to cancel")
    if not cells:
        for number in active:
            submissions.cancel(opened.root, name, number, None)
        _cancel_jobs(opened.root, name, active, now)
        return
    if now:
        raise ValueError("--now ends whole jobs, which may run other cells too: it goes with a whole study only")
    prints = _fingerprints(opened, cells)
    for number in active:
        submissions.cancel(opened.root, name, number, prints)
    out.print(
        f"{len(prints)} cells are cancelled, and what is made from them; one that runs saves first, within seconds"
    )


def _fingerprints(opened: Opened, names: Sequence[str]) -> list[str]:
    found = {cell.fingerprint for name in names for cell in find_cells(opened, name)}
    return sorted(found)


def _cancel_jobs(root: Path, study: str, numbers: Sequence[int], now: bool) -> None:
    """Take what waits out of Slurm's queue; what runs ends by itself, or at once."""
    arrays = {
        name for number in numbers for name in submissions.arrays(submissions.read(root, study, number))
    }  # fmt: skip
    if not arrays:
        out.print("the workers on this machine end once their stages have saved, within seconds")
        return
    for name in sorted(arrays):
        queue.command("scancel", "--name", name, *(() if now else ("--state", "PENDING")))
    snapshot = Queue(root).snapshot(fresh=True)
    running = [job.id for job in snapshot.jobs.values() if job.name in arrays and job.alive]
    launched = latest(root, study)
    grace = launched[1].grace_seconds if launched else 0
    out.print("nothing of it waits in the queue any more")
    if running and not now:
        out.print(
            f"{len(running)} workers end once their stages have saved, within {grace} s (jobs"
            f" {escape(', '.join(running))}); `tidemark cancel STUDY --now` ends them at once"
        )
