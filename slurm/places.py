"""Where a study's workers are on a cluster: in the queue and why, on which node and for how long, or how they ended.

One squeue, and one sacct where workers have gone from squeue's sight; both are kept for a while under the root.
"""

import json
import os
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from slurm import profiles, submissions
from slurm.bad_nodes import bad_nodes
from slurm.profiles import Profile
from slurm.queue import Job, Queue, SlurmError, Snapshot, sacct


@dataclass(frozen=True, kw_only=True)
class Places:
    """jobs: this study's workers in the queue, each with its shape. ended: shape and state -> how many of the latest
    launch have ended so. bad: nodes that later launches leave out -> why. remarks: what could not be asked."""

    jobs: Sequence[tuple[str, Job]]
    ended: Mapping[tuple[str, str], int] = field(default_factory=dict)
    bad: Mapping[str, str] = field(default_factory=dict)
    remarks: Sequence[str] = ()

    def job(self, number: str) -> Job | None:
        """The job of that number, if it is one of this study's workers."""
        return next((job for _, job in self.jobs if job.id == number), None)

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "workers": [{"shape": shape, **asdict(job)} for shape, job in self.jobs],
            "ended": [{"shape": shape, "state": state, "workers": n} for (shape, state), n in self.ended.items()],
            "excluded_nodes": dict(self.bad),
            "remarks": list(self.remarks),
        }


def latest(root: Path, study: str) -> tuple[int, Profile] | None:
    """The latest launch of a study on a cluster, and its profile; None if there was none."""
    for number in reversed(submissions.numbers(root, study)):
        content = submissions.read(root, study, number)
        if "arrays" in content:
            return number, profiles.read(content["profile"])
    return None


def places(root: Path, study: str, queue: Queue, number: int, profile: Profile) -> Places:
    """What Slurm says of a study's workers; `number` is its latest launch there."""
    snapshot = queue.snapshot()
    arrays = {
        name: array
        for launch in submissions.numbers(root, study)
        for name, array in submissions.arrays(submissions.read(root, study, launch)).items()
    }
    jobs = [(arrays[job.name]["shape"], job) for job in snapshot.jobs.values() if job.name in arrays]
    ended, remarks = _ended(root, study, submissions.arrays(submissions.read(root, study, number)), snapshot, queue)
    if snapshot.error:
        remarks = [f"Slurm does not answer, so what is said to run may have ended ({snapshot.error})", *remarks]
    return Places(
        jobs=[(shape, job) for shape, job in jobs if job.alive or job.waiting],
        ended=ended,
        bad=bad_nodes(root, study, profile),
        remarks=remarks,
    )


def _ended(
    root: Path, study: str, arrays: Mapping[str, Mapping[str, Any]], snapshot: Snapshot, queue: Queue
) -> tuple[Counter[tuple[str, str]], list[str]]:
    """How the workers of a launch that have ended did so, and what cannot be said."""
    counts: Counter[tuple[str, str]] = Counter()
    asked: dict[str, str] = {}  # job number of an array that squeue has forgotten, at least in part -> its shape
    for name, array in arrays.items():
        known = [job for job in snapshot.jobs.values() if job.name == name]
        if snapshot.error or len(known) < array["workers"]:
            asked[array["job"]] = array["shape"]
        else:
            counts.update((array["shape"], job.state) for job in known if not (job.alive or job.waiting))
    if not asked or snapshot.error:
        return counts, []
    try:
        rows = _accounting(root, study, sorted(asked), queue.seconds)
    except SlurmError as error:
        return counts, [
            f"accounting does not answer, so how workers ended that squeue has forgotten is unknown ({error})"
        ]
    last = {row["JobID"]: row["State"].split()[0] for row in rows}  # a requeued job has a row for each run
    counts.update(
        (asked[job.split("_")[0]], state)
        for job, state in last.items()
        if state not in ("PENDING", "RUNNING", "REQUEUED") and job.split("_")[0] in asked
    )
    return counts, []


def _accounting(root: Path, study: str, jobs: list[str], seconds: float) -> list[dict[str, str]]:
    """sacct's rows of these jobs, asked at most every `seconds`."""
    file = root / "index" / f"sacct-{study}.json"
    try:
        content = json.loads(file.read_bytes())
        if content["jobs"] == jobs and 0 <= time.time() - file.stat().st_mtime <= seconds:
            return list(content["rows"])
    except (OSError, ValueError, KeyError):  # none yet, or torn
        pass
    rows = sacct(jobs, ["JobID", "State"])
    part = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    try:
        part.write_text(json.dumps({"jobs": jobs, "rows": rows}))
        os.replace(part, file)
    except OSError:  # a full disk, or a root that may only be read: it is asked again next time
        part.unlink(missing_ok=True)
    return rows
