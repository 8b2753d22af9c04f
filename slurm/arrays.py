"""Launch on Slurm: arrays of workers, one a shape, through submitit. It returns once they are in the queue.

Nothing is submitted twice: the names of the arrays are written before sbatch is called, one launch number is taken by
link(2), and whoever launches after a launch that died asks Slurm for those names first.
"""

import os
import re
import shlex
import shutil
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

from slurm import limits, profiles, submissions
from slurm.bad_nodes import bad_nodes
from slurm.estimates import Estimates
from slurm.launch import AlreadyRunning, adopt_folders, describe_launch
from slurm.profiles import Fit, Profile, Shape
from slurm.queue import Queue, SlurmError, Snapshot, squeue
from slurm.worker import Work
from toolkit import provenance
from toolkit.expand import slug
from toolkit.manifest import claims
from toolkit.manifest.files import check_root, write_atomic
from toolkit.plan import CellState, survey
from toolkit.study import Cell, Study

TIMEOUTS = 10**6  # submitit counts every signal of a short job as a time-out, and would stop to requeue after three
STARTING_SECONDS = 600.0  # a launch on another host that says nothing for so long has died
LOOKS, LOOK_SECONDS = 3, 3.0  # how often Slurm is asked for a job whose sbatch said nothing of use


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """What a launch did: its number (None: nothing was left to submit), arrays by name, how many workers of earlier
    launches wait and run, how many cells need this host, and remarks for the user."""

    number: int | None
    arrays: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    login: int = 0
    waiting: int = 0
    running: int = 0
    said: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A profile with its plain words and the name that it was asked for by."""

    name: str
    profile: Profile
    words: Mapping[str, Any]


def launch(root: Path, study: Study, cells: Sequence[Cell], cluster: Cluster, options: Mapping[str, Any]) -> Submitted:
    """Submit the workers that are missing for what is not done, and return.

    Raises:
        AlreadyRunning: another launch of this study is submitting just now, or workers of this machine run it.
        ValueError: the root cannot be written or named, Slurm does not answer, refuses, or has no room.
    """
    check_path(root)
    check_root(root)
    while True:
        number = submissions.next_number(root, study.name)
        snapshot = _snapshot(root, cluster.profile)
        _settle(root, study.name, snapshot)
        fits = profiles.fits(cluster.profile, list(cells), study)
        states = survey(root, study.name, cells, Queue(root, cluster.profile.poll_seconds).alive)
        counts, live = _wanted(root, study, cells, states, fits, cluster.profile, snapshot)
        login = sum(fits[p].name == profiles.LOGIN and states[p].state not in ("done", "running") for p in fits)
        if not counts and not login:
            return Submitted(number=None, waiting=live[1], running=live[0])
        bad = bad_nodes(root, study.name, cluster.profile)
        arrays, said = _arrays(study, counts, cluster.profile, snapshot, bad)
        seconds = Estimates().read(root).words(cells)
        content = {"options": dict(options), "cluster": cluster.name, "profile": cluster.words, "seconds": seconds}
        if submissions.prepare(root, study, number, {**content, "arrays": arrays}):
            break
    adopt_folders(root, cells)
    lock = submissions.folder(root, study.name) / f"{number}-environment.txt"
    write_atomic(lock, "\n".join(provenance.environment()).encode())
    said += [f"node {node} is excluded: {why}" for node, why in bad.items()]
    for name in arrays:
        arrays[name] |= _submit(root, study.name, number, cluster.profile, name, arrays[name])
        submissions.write(root, study.name, number, {**submissions.read(root, study.name, number), "arrays": arrays})
    submissions.submitted(root, study.name, number)
    return Submitted(number=number, arrays=arrays, login=login, waiting=live[1], running=live[0], said=said)


def work_here(root: Path, study: str, number: int) -> int:
    """Run the cells of a launch that need the internet, on this host; returns how many were committed."""
    return Work()(root, study, number, profiles.LOGIN)


def check_path(root: Path) -> None:
    """
    Raises:
        ValueError: the root's path cannot stand in a batch file: Slurm reads `%` as a pattern, and a line has an end.
    """
    wrong = next((mark for mark in str(root) if mark in "%\\" or not mark.isprintable()), None)
    if wrong is not None:
        raise ValueError(
            f"the root {str(root)!r} has {wrong!r} in its path, which sbatch would not read as it stands: choose"
            " another folder, with --root or TIDEMARK_ROOT"
        )


def _snapshot(root: Path, profile: Profile) -> Snapshot:
    snapshot = Queue(root, profile.poll_seconds).snapshot(fresh=True)
    if snapshot.error:
        raise ValueError(f"Slurm does not answer, so nothing was submitted: {snapshot.error}")
    return snapshot


def _settle(root: Path, study: str, snapshot: Snapshot) -> None:
    """Finish what launches that died have begun: their arrays are in the queue, or are dropped.

    Raises:
        AlreadyRunning: one of them lives.
    """
    for number in submissions.numbers(root, study):
        content = submissions.read(root, study, number)
        if "arrays" not in content and submissions.at_work(root, study, number, content, snapshot):
            raise AlreadyRunning(describe_launch(root, study, number))
        if "arrays" not in content or content["state"] != "prepared":
            continue
        alive = claims.liveness(content["who"])
        age = snapshot.began - (submissions.folder(root, study) / f"{number}.json").stat().st_mtime
        if alive or (alive is None and age < STARTING_SECONDS):
            raise AlreadyRunning(describe_launch(root, study, number))
        for name, array in content["arrays"].items():
            if array["state"] == "prepared":
                array |= _recover(root, study, number, name, array, snapshot)
        submissions.write(root, study, number, {**content, "state": "submitted", "workers": []})


def _recover(
    root: Path, study: str, number: int, name: str, array: Mapping[str, Any], snapshot: Snapshot
) -> dict[str, Any]:
    """What became of an array whose sbatch nobody saw the end of."""
    found = next((job for job in snapshot.jobs.values() if job.name == name), None)
    if found is None:
        return {"state": "dropped"}
    job = found.id.split("_")[0]
    _complete(submissions.workers_folder(root, study, number, array["shape"]), job, array["workers"])
    return {"state": "submitted", "job": job}


def _complete(folder: Path, job: str, workers: int) -> None:
    """Put submitit's pickles where the jobs look for them, as it would have once it knew their number. Those of an
    array are all alike, so any of them serves."""
    left = sorted(path for path in folder.glob("*.pkl") if re.fullmatch(r"[0-9a-f]{32}", path.stem))
    for name in [f"{job}_{task}" for task in range(workers)] if workers > 1 else [job]:
        target = folder / f"{name}_submitted.pkl"
        if not target.exists() and left:
            part = folder / f".{target.name}.{uuid.uuid4().hex}"
            shutil.copyfile(left[0], part)
            part.replace(target)


def _wanted(
    root: Path, study: Study, cells: Sequence[Cell], states: Mapping[str, CellState], fits: Mapping[str, Fit],
    profile: Profile, snapshot: Snapshot,
) -> tuple[dict[str, int], tuple[int, int]]:  # fmt: skip
    """Shape -> workers to submit; and how many of earlier launches run and wait.

    Workers of an earlier launch are counted on for the cells that it had, but for those that it has given up.
    """
    todo = {c.fingerprint for c in cells if states[c.fingerprint].state != "done" and c.fingerprint in fits}
    have: Counter[str] = Counter()
    covered: set[tuple[str, str]] = set()
    running = waiting = 0
    for number in submissions.active(root, study.name, snapshot):
        content = submissions.read(root, study.name, number)
        arrays = {} if content["state"] == "cancelled" else submissions.arrays(content)
        jobs = [job for job in snapshot.jobs.values() if job.name in arrays and (job.alive or job.waiting)]
        running, waiting = running + sum(j.alive for j in jobs), waiting + sum(j.waiting for j in jobs)
        known = {cell.fingerprint for cell in submissions.cells(root, study.name, number)} if jobs else set()
        known -= set(content.get("cancelled", ()))
        for job in jobs:
            shape = arrays[job.name]["shape"]
            have[shape] += 1
            covered |= {(shape, print_) for print_ in known & todo}
    given_up = {print_ for print_ in todo if states[print_].state in ("failed", "blocked")}
    counts = {}
    for name, shape in profile.shapes.items():
        mine = {print_ for print_ in todo if fits[print_].name == name}
        new = {print_ for print_ in mine if (name, print_) not in covered or print_ in given_up}
        count = max(min(shape.workers, len(mine)) - have[name], min(shape.workers, len(new)))
        if count > 0:
            counts[name] = count
    return counts, (running, waiting)


def _arrays(
    study: Study, counts: Mapping[str, int], profile: Profile, snapshot: Snapshot, bad: Mapping[str, str]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The arrays to submit by name, within Slurm's limits; and what is to be said of those."""
    try:
        allowed = limits.read(profile, [profile.shapes[name] for name in counts], snapshot)
    except SlurmError as error:
        raise ValueError(f"Slurm does not answer, so nothing was submitted: {error}") from error
    if allowed.room < len(counts):
        raise ValueError(
            f"there is room for {allowed.room} more jobs and {len(counts)} shapes need one each"
            f" ({'; '.join(allowed.said)}): wait, or cancel something"
        )
    chosen = dict(counts)
    while sum(chosen.values()) > allowed.room:  # the largest gives first
        chosen[max(chosen, key=lambda name: chosen[name])] -= 1
    said = [] if chosen == dict(counts) else [f"fewer workers than the profile allows: {'; '.join(allowed.said)}"]
    found = {}
    for shape, count in chosen.items():
        while count > 0:
            part = min(count, allowed.array)
            name = f"tidemark-{slug(study.name)[:40]}-{shape}-{uuid.uuid4().hex[:12]}"
            exclude = sorted({*profile.shapes[shape].exclude, *bad})
            found[name] = {"shape": shape, "workers": part, "exclude": exclude, "state": "prepared"}
            count -= part
    return found, said


def _submit(
    root: Path, study: str, number: int, profile: Profile, name: str, array: Mapping[str, Any]
) -> dict[str, Any]:
    """Call sbatch for an array; what is known of it afterwards.

    Raises:
        ValueError: sbatch refused; what it said.
    """
    import submitit

    executor = make_executor(root, study, number, profile, name, array)
    arguments = (root, study, number, array["shape"], name)
    try:
        with outside_a_job(), executor.batch():
            jobs = [executor.submit(Work(), *arguments) for _ in range(array["workers"])]
        return {"state": "submitted", "job": jobs[0].job_id.split("_")[0]}
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError, SlurmError) as error:
        failed = str(error).strip()
    for _ in range(LOOKS):  # "Socket timed out": it may have come through all the same
        try:
            found = next(iter(squeue("--name", name).values()), None)
        except SlurmError:
            found = None
        if found is not None:
            job = found.id.split("_")[0]
            _complete(executor.folder, job, array["workers"])
            return {"state": "submitted", "job": job}
        time.sleep(LOOK_SECONDS)
    content = submissions.read(root, study, number)
    content["arrays"][name]["state"] = "dropped"
    submissions.write(root, study, number, {**content, "state": "submitted", "workers": []})
    raise ValueError(f"sbatch refused the workers of shape {array['shape']!r}: {failed}")


@contextmanager
def outside_a_job() -> Iterator[None]:
    """A launch from inside a job would hand that job's variables to its workers."""
    from submitit.helpers import clean_env

    if "SLURM_JOB_ID" not in os.environ:
        yield
        return
    config = os.environ.get("SLURM_CONF")
    with clean_env():
        if config is not None:
            os.environ["SLURM_CONF"] = config
        yield


def make_executor(
    root: Path, study: str, number: int, profile: Profile, name: str, array: Mapping[str, Any], *, dry: bool = False
) -> Any:
    """submitit's executor for the workers of an array."""
    import submitit

    shape = profile.shapes[array["shape"]]
    kind: Any = submitit.SlurmExecutor
    if dry:  # to look at, where there may be no Slurm
        kind = type("DryExecutor", (kind,), {"affinity": classmethod(lambda cls: 2)})
    folder = submissions.workers_folder(root, study, number, array["shape"])
    executor = kind(folder, TIMEOUTS, python=python_command(profile))
    more: dict[str, Any] = {"requeue": True, "open-mode": "append", "chdir": str(root), **shape.sbatch}
    chosen = {
        "partition": shape.partition, "account": shape.account, "qos": shape.qos, "constraint": shape.constraint,
        "mem": f"{ceil(shape.memory * 1024)}M" if shape.memory is not None else None,
        "gpus_per_node": shape.gpus or None, "exclude": ",".join(array["exclude"]) or None,
    }  # fmt: skip
    executor.update_parameters(
        job_name=name, nodes=shape.nodes, ntasks_per_node=1, cpus_per_task=shape.cpus, time=ceil(shape.hours * 60),
        signal_delay_s=profile.grace_seconds, array_parallelism=array["workers"], stderr_to_stdout=True,
        setup=[*profile.setup, "export PYTHONSAFEPATH=1"], srun_args=srun_arguments(profile),
        additional_parameters=more,
        **{key: value for key, value in chosen.items() if value is not None},
    )  # fmt: skip
    return executor


def python_command(profile: Profile) -> str:
    """What is Python on a node, as a shell reads it."""
    python = profile.python or shlex.quote(sys.executable)
    box = profile.container
    if box is None or box.runtime == "pyxis":
        return python
    words = [
        "apptainer",
        "exec",
        *box.options,
        *(word for mount in box.mounts for word in ("--bind", mount)),
        box.image,
    ]
    return f"{shlex.join(words)} {python}"


def srun_arguments(profile: Profile) -> list[str]:
    """Options of srun: a requeued job goes on in the same log, and a task that dies ends the others."""
    words = ["--open-mode=append", "--kill-on-bad-exit=1"]
    box = profile.container
    if box is not None and box.runtime == "pyxis":
        words += [f"--container-image={box.image}", *box.options]
        words += (
            [f"--container-mounts={','.join(m if ':' in m else f'{m}:{m}' for m in box.mounts)}"] if box.mounts else []
        )
    return words


def batch_files(root: Path, study: Study, cells: Sequence[Cell], cluster: Cluster) -> dict[str, str]:
    """Name -> batch file, as a launch that has everything to do would submit them; asks Slurm nothing, writes
    nothing."""
    check_path(root)
    fits = profiles.fits(cluster.profile, list(cells), study)
    found = {}
    for name, shape in cluster.profile.shapes.items():
        mine = sum(fit.name == name for fit in fits.values())
        if mine:
            array = {"shape": name, "workers": min(shape.workers, mine), "exclude": list(shape.exclude)}
            found[name] = _text(root, study, cluster.profile, shape, array)
    return found


def _text(root: Path, study: Study, profile: Profile, shape: Shape, array: Mapping[str, Any]) -> str:
    number = submissions.next_number(root, study.name)
    name = f"tidemark-{slug(study.name)[:40]}-{array['shape']}"
    executor = make_executor(root, study.name, number, profile, name, array, dry=True)
    if array["workers"] > 1:
        executor.parameters["map_count"] = array["workers"]
    return str(executor._make_submission_file_text(executor._submitit_command_str, "dry-run"))
