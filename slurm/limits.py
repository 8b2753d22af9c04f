"""How much may be submitted: Slurm's limits for this user, read live, and the profile's own."""

import getpass
from collections.abc import Sequence
from dataclasses import dataclass, field

from slurm import queue
from slurm.profiles import Profile, Shape

ARRAY = 1001  # Slurm's own default of MaxArraySize


@dataclass(frozen=True, kw_only=True)
class Limits:
    """array: most tasks of one array. room: jobs that may be submitted on top of what there is; array tasks count one
    by one. said: what decided, one sentence each, and what could not be asked."""

    array: int
    room: int
    said: list[str] = field(default_factory=list)


def read(profile: Profile, shapes: Sequence[Shape], snapshot: queue.Snapshot) -> Limits:
    """
    Raises:
        SlurmError: the controller does not answer.
    """
    config = queue.configuration()
    there = sum(1 for job in snapshot.jobs.values() if job.alive or job.waiting)
    bounds = [(int(config.get("MaxJobCount", 10000)), "MaxJobCount of the cluster")]
    if profile.max_jobs is not None:
        bounds.append((profile.max_jobs, "max_jobs of the profile"))
    said = []
    try:
        bounds += _accounting(shapes)
    except queue.SlurmError as error:
        said.append(f"limits of the account are unknown, since accounting does not answer ({error})")
    most, name = min(bounds)
    said.append(f"{there} jobs of yours are there, and {name} is {most}")
    return Limits(array=int(config.get("MaxArraySize", ARRAY)) - 1, room=max(0, most - there), said=said)


def _accounting(shapes: Sequence[Shape]) -> list[tuple[int, str]]:
    """Limits of this user's associations and of the QOS that is in force. A limit of jobs that run is none of jobs that
    are submitted."""
    user = getpass.getuser()
    accounts, wanted = {shape.account for shape in shapes}, {shape.qos for shape in shapes}
    bounds = []
    fields = "Account,Partition,MaxSubmit,GrpSubmit,DefaultQOS,QOS"
    for line in queue.command("sacctmgr", "-nP", "show", "assoc", f"user={user}", f"format={fields}").splitlines():
        account, _, most, group, default, names = line.split("|")
        if account in accounts or None in accounts:
            bounds += _numbers(
                {f"MaxSubmitJobs of account {account}": most, f"GrpSubmitJobs of account {account}": group}
            )
            wanted |= {default or names.split(",")[0]} if None in wanted else set()
    for line in queue.command("sacctmgr", "-nP", "show", "qos", "format=Name,MaxSubmitPU,GrpSubmit").splitlines():
        name, most, group = line.split("|")
        if name in wanted:
            bounds += _numbers({f"MaxSubmitJobsPerUser of QOS {name}": most, f"GrpSubmitJobs of QOS {name}": group})
    return bounds


def _numbers(words: dict[str, str]) -> list[tuple[int, str]]:
    return [(int(text), name) for name, text in words.items() if text.isdigit()]
