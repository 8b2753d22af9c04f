"""Slurm as a whole, in its own words: configuration, partitions, nodes, accounts, and what may still be submitted."""

import getpass
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from slurm import limits, queue
from slurm.doctor.line import Line, ok
from slurm.profiles import Profile, Shape

BROKEN = re.compile(r"^(?!power)\w*(down|drain|fail|error|unk|maint|inval)")  # states of a node that runs nothing


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node of a partition, as Slurm's configuration has it; memory in MB."""

    name: str
    cpus: int
    memory: int
    gpus: int
    usable: bool


@dataclass(frozen=True, kw_only=True)
class Site:
    """What Slurm says of itself. accounts: this user's associations, qos: by name; None where accounting is silent."""

    config: Mapping[str, str]
    partitions: Mapping[str, Mapping[str, str]]
    nodes: Mapping[str, Sequence[Node]]
    accounts: Sequence[Mapping[str, str]] | None
    qos: Mapping[str, Mapping[str, str]] | None

    def of(self, shape: Shape) -> list[str]:
        """The partitions of a shape that exist; the default one where it names none."""
        if shape.partition is None:
            return [name for name, words in self.partitions.items() if words.get("Default") == "YES"]
        return [name for name in shape.partition.split(",") if name in self.partitions]

    def qos_of(self, shape: Shape) -> Mapping[str, str]:
        """The QOS that a shape's jobs get, as far as accounting tells."""
        mine = [a for a in self.accounts or () if shape.account in (None, a["Account"])]
        name = shape.qos or next((a["DefaultQOS"] or a["QOS"].split(",")[0] for a in mine), "")
        return (self.qos or {}).get(name, {})


def ask(profile: Profile, names: Sequence[str]) -> tuple[list[Line], Site | None]:
    """Reach the controller and accounting; None if the controller does not answer."""
    try:
        _ping()
        config = queue.configuration()
        partitions = _partitions()
        nodes = _nodes()
    except queue.SlurmError as error:
        return [
            Line(
                level="failed", where="Slurm", what="controller", found=str(error), needed="an answer",
                mend="run this on a login node of the cluster; `scontrol ping` says whether slurmctld is up,"
                " the rest is for the cluster's administrators",
            )
        ], None  # fmt: skip
    lines = [ok("Slurm", "controller", f"cluster {config['ClusterName']}, Slurm {config.get('SLURM_VERSION', '')}")]
    line, accounts, qos = _accounting(config)
    site = Site(config=config, partitions=partitions, nodes=nodes, accounts=accounts, qos=qos)
    return [*lines, line, _room(profile, names), _requeue(config)], site


def _ping() -> None:
    """It answers at once, where other commands try again for MessageTimeout.

    Raises:
        SlurmError: no controller is up, neither the first nor a backup.
    """
    try:
        said = queue.command("scontrol", "ping")
    except queue.SlurmError as error:  # one of several may be down
        said = str(error)
    if "is UP" not in said:
        raise queue.SlurmError(said.splitlines()[0])


def _fields(line: str) -> dict[str, str]:
    """One line of `scontrol -o`: words KEY=VALUE."""
    return dict(word.split("=", 1) for word in line.split() if "=" in word)


def _partitions() -> dict[str, dict[str, str]]:
    lines = queue.command("scontrol", "-o", "show", "partition").splitlines()
    return {words["PartitionName"]: words for words in map(_fields, lines) if "PartitionName" in words}


def _nodes() -> dict[str, list[Node]]:
    """The nodes of each partition."""
    found: dict[str, list[Node]] = {}
    for line in queue.command("sinfo", "--noheader", "--Node", "--format=%R|%N|%c|%m|%G|%T").splitlines():
        partition, name, cpus, memory, gres, state = line.strip().split("|")
        gpus = sum(int(count) for count in re.findall(r"gpu(?::[^:,()]+)?:(\d+)", gres))
        usable = not BROKEN.match(state.lower()) and not state.endswith("*")
        node = Node(name=name, cpus=int(cpus), memory=int(memory.rstrip("+")), gpus=gpus, usable=usable)
        found.setdefault(partition, []).append(node)
    return found


def _accounting(
    config: Mapping[str, str],
) -> tuple[Line, list[dict[str, str]] | None, dict[str, dict[str, str]] | None]:
    kind = config.get("AccountingStorageType", "")
    if not kind.endswith("slurmdbd"):
        mend = "nothing to mend: how a lost job ended, limits of accounts and GPU-hours stay unknown"
        line = Line(
            level="warning", where="Slurm", what="accounting", found=f"none ({kind})", needed="slurmdbd", mend=mend
        )
        return line, None, None
    fields, more = ("Account", "DefaultQOS", "QOS", "MaxWall"), (
        "Name",
        "MaxWall",
        "Preempt",
        "PreemptMode",
        "GraceTime",
    )
    try:
        accounts = _table("assoc", fields, f"user={getpass.getuser()}")
        qos = {row["Name"]: row for row in _table("qos", more)}
    except queue.SlurmError as error:
        mend = "launch and status work without it; ask the administrators about slurmdbd if it stays away"
        found = f"slurmdbd does not answer: {str(error).splitlines()[0]}"
        return (
            Line(level="warning", where="Slurm", what="accounting", found=found, needed="an answer", mend=mend),
            None,
            None,
        )
    names = sorted({row["Account"] for row in accounts})
    return (
        ok("Slurm", "accounting", f"accounts {', '.join(names) or '(none)'}; QOS {', '.join(sorted(qos))}"),
        accounts,
        qos,
    )


def _table(what: str, fields: Sequence[str], *words: str) -> list[dict[str, str]]:
    text = queue.command("sacctmgr", "-nP", "show", what, *words, f"format={','.join(fields)}")
    return [dict(zip(fields, line.split("|"), strict=True)) for line in text.splitlines()]


def _room(profile: Profile, names: Sequence[str]) -> Line:
    shapes = [profile.shapes[name] for name in names]
    wanted = sum(shape.workers for shape in shapes)
    try:
        allowed = limits.read(profile, shapes, queue.Snapshot(began=0.0, cluster="", jobs=queue.squeue()))
    except queue.SlurmError as error:
        mend = "try again; a launch needs the same answer"
        return Line(level="failed", where="Slurm", what="limits", found=str(error), needed="an answer", mend=mend)
    said = " ".join("; ".join(allowed.said).split())
    found = f"room for {allowed.room} more jobs, arrays of up to {allowed.array}; {said}"
    needed = f"{wanted} workers, {len(shapes)} at the least"
    mend = "wait for jobs to end, cancel some, or ask for a higher limit"
    if allowed.room < len(shapes):
        return Line(level="failed", where="Slurm", what="limits", found=found, needed=needed, mend=mend)
    if allowed.room < wanted:
        mend = "a launch submits fewer workers; lower `workers` in the profile, or ask for a higher limit"
        return Line(level="warning", where="Slurm", what="limits", found=found, needed=needed, mend=mend)
    return ok("Slurm", "limits", found, needed)


def _requeue(config: Mapping[str, str]) -> Line:
    """What a job's own flag says in the end is looked up when one is there (`nodes`)."""
    said = "requeued by default" if config.get("JobRequeue") == "1" else "not requeued unless they ask; workers do"
    return ok("Slurm", "JobRequeue", f"{config.get('JobRequeue', 'unknown')}: jobs are {said}")
