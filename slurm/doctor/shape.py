"""What Slurm says of a profile's shape before any job runs: whether such a worker could, and how it would end."""

import re
import subprocess
from collections.abc import Sequence
from math import inf
from pathlib import Path

from slurm import arrays
from slurm.doctor.line import Level, Line, ok
from slurm.doctor.site import Node, Site
from slurm.profiles import Profile, Shape
from slurm.queue import SECONDS
from toolkit.lookup import unknown

MOST_GRACE = 0.5  # of a worker's hours


def look(root: Path, profile: Profile, name: str, site: Site) -> list[Line]:
    """What Slurm says of a shape: partition, account and QOS, time, preemption, and whether such a job could start."""
    shape, where = profile.shapes[name], f"shape {name}"
    lines = _partition(where, shape, site)
    if not site.of(shape):
        return lines
    return [
        *lines,
        *_permission(where, shape, site),
        _hours(where, shape, site),
        _grace(where, profile, shape, site),
        _preemption(where, profile, shape, site),
        _possible(root, where, profile, name, site),
    ]


def _partition(where: str, shape: Shape, site: Site) -> list[Line]:
    names = shape.partition.split(",") if shape.partition else site.of(shape)
    if not names:
        mend = f"give the shape a partition: {', '.join(site.partitions)}"
        return [
            Line(level="failed", where=where, what="partition", found="no default partition", needed="one", mend=mend)
        ]
    return [_state(where, name, shape, site) for name in names]


def _state(where: str, name: str, shape: Shape, site: Site) -> Line:
    nodes = site.nodes.get(name, ())
    usable = sum(node.usable for node in nodes)
    state = site.partitions.get(name, {}).get("State", "")
    found = f"{name} is {state}, {usable} of {len(nodes)} nodes can run jobs"
    needed = f"UP, with {_count(shape.nodes, 'node')}"
    level: Level = "failed"
    if not state:
        found, mend = unknown("partition", name, site.partitions), "name one of these as the shape's partition"
    elif state != "UP":
        mend = "wait until it is up again, or name another partition"
    elif len(nodes) < shape.nodes:
        mend = f"lower the shape's nodes to {len(nodes)} or less, or name another partition"
    elif usable < shape.nodes:
        level, mend = "warning", "jobs wait until nodes are back: `sinfo -R` says why; or name another partition"
    else:
        return ok(where, "partition", found, needed)
    return Line(level=level, where=where, what="partition", found=found, needed=needed, mend=mend)


def _permission(where: str, shape: Shape, site: Site) -> list[Line]:
    """Account and QOS: where Slurm does not enforce them, it takes jobs with names that nobody knows."""
    if site.accounts is None or site.qos is None:
        return []
    enforced = "associations" in site.config.get("AccountingStorageEnforce", "")
    accounts = sorted({row["Account"] for row in site.accounts})
    mine = [row for row in site.accounts if shape.account == row["Account"]] or site.accounts
    allowed = sorted({name for row in mine for name in row["QOS"].split(",") if name})
    lines = []
    for what, given, valid in (("account", shape.account, accounts), ("qos", shape.qos, allowed)):
        if given is not None and given in valid:
            lines.append(ok(where, what, f"{given} is yours"))
        elif given is not None or (enforced and not valid):
            found = unknown(what, given, valid) if given else f"you have no {what} on this cluster"
            mend = f"name one of yours as the shape's {what}; `sacctmgr show assoc user=$USER` lists them"
            level: Level = "failed" if enforced else "warning"
            mend += "" if enforced else " (this cluster does not enforce it)"
            lines.append(Line(level=level, where=where, what=what, found=found, needed=given or "one", mend=mend))
    return lines


def seconds(text: str) -> float:
    """A time as Slurm writes it: `3-12:00:00`, `08:00:00`, `30:00`; infinite if there is no limit."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text.strip())
    if match is None:
        return inf
    days, hours, minutes, rest = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + rest


def _hours(where: str, shape: Shape, site: Site) -> Line:
    """`sbatch` takes a job that is too long, and it waits for ever, unless the cluster enforces its limits."""
    bounds = {f"partition {name}": site.partitions[name].get("MaxTime", "") for name in site.of(shape)}
    qos = site.qos_of(shape)
    bounds |= {f"QOS {qos['Name']}": qos["MaxWall"]} if qos else {}
    accounts = [row for row in site.accounts or () if shape.account == row["Account"]]
    bounds |= {f"account {row['Account']}": row["MaxWall"] for row in accounts}
    most, name = min((seconds(text), name) for name, text in bounds.items())
    found = "no limit" if most == inf else f"{name}: at most {most / 3600:g} h"
    if most >= shape.hours * 3600:
        return ok(where, "time limit", found, f"{shape.hours:g} h")
    mend = f"set the shape's hours to {most / 3600:g} or less, or name another partition or QOS"
    return Line(level="failed", where=where, what="time limit", found=found, needed=f"{shape.hours:g} h", mend=mend)


def _grace(where: str, profile: Profile, shape: Shape, site: Site) -> Line:
    """USR2 comes `grace_seconds` before the limit, then TERM, and KILL after KillWait."""
    over, wait = (site.config.get(key, "unknown") for key in ("OverTimeLimit", "KillWait"))
    found = f"USR2 {profile.grace_seconds} s before the end; OverTimeLimit {over}, KillWait {wait}"
    needed = f"at most {MOST_GRACE:.0%} of {shape.hours:g} h"
    if profile.grace_seconds <= MOST_GRACE * shape.hours * 3600:
        return ok(where, "end of time", found, needed)
    level: Level = "failed" if profile.grace_seconds >= shape.hours * 3600 else "warning"
    mend = "lower grace_seconds in the profile, or give the shape more hours"
    return Line(level=level, where=where, what="end of time", found=found, needed=needed, mend=mend)


def _preemption(where: str, profile: Profile, shape: Shape, site: Site) -> Line:
    modes = [_preempted(name, shape, site) for name in site.of(shape)]
    mode, grace = next((found for found in modes if found[0] != "OFF"), ("OFF", inf))
    needed = f"none, or requeue {profile.grace_seconds} s after a signal"
    if mode == "OFF":
        return ok(where, "preemption", "its jobs are not preempted", needed)
    user = "preempt_send_user_signal" in site.config.get("SlurmctldParameters", "")
    found = f"{mode.lower()}, {grace:g} s after {'USR2' if user else 'TERM'}"
    if mode != "REQUEUE":
        mend = (
            "what a preempted worker ran is resumed by the next `tidemark launch`; a partition that requeues needs none"
        )
    elif grace < profile.grace_seconds:
        mend = f"a save must not take longer than {grace:g} s, or its steps are lost; set grace_seconds to that"
    else:
        return ok(where, "preemption", found, needed)
    return Line(level="warning", where=where, what="preemption", found=found, needed=needed, mend=mend)


def _preempted(partition: str, shape: Shape, site: Site) -> tuple[str, float]:
    """How jobs of a shape are preempted in a partition (OFF, REQUEUE, CANCEL, SUSPEND), and their grace time."""
    words, config = site.partitions[partition], site.config
    whole = config.get("PreemptMode", "OFF").split(",")[-1]  # after GANG
    if config.get("PreemptType") == "preempt/partition_prio":
        mine = {node.name for node in site.nodes.get(partition, ())}
        tier = int(words.get("PriorityTier", 0))
        tiers = [
            name for name, other in site.partitions.items()
            if int(other.get("PriorityTier", 0)) > tier and mine & {node.name for node in site.nodes.get(name, ())}
        ]  # fmt: skip
        return (words.get("PreemptMode", whole).split(",")[-1] if tiers else "OFF"), float(words.get("GraceTime", 0))
    qos = site.qos_of(shape)
    if config.get("PreemptType") != "preempt/qos" or not qos:
        return "OFF", inf
    above = [other for other in (site.qos or {}).values() if qos["Name"] in other["Preempt"].split(",")]
    mode = whole if qos["PreemptMode"] == "cluster" else qos["PreemptMode"].upper()
    return (mode if above else "OFF"), seconds(qos["GraceTime"])


def _possible(root: Path, where: str, profile: Profile, name: str, site: Site) -> Line:
    """Ask sbatch whether a worker could run, with the batch file of a launch."""
    needed = describe(profile.shapes[name])
    refused, said = refusal(batch_file(root, profile, name))
    if not refused:
        return ok(where, "sbatch", said, needed)
    nodes = [node for partition in site.of(profile.shapes[name]) for node in site.nodes.get(partition, ())]
    mend = "; ".join(shortage(profile.shapes[name], nodes)) or "compare the shape with `scontrol show partition`"
    return Line(level="failed", where=where, what="sbatch", found=said, needed=needed, mend=mend)


def describe(shape: Shape) -> str:
    """What is asked for, in words."""
    memory = "" if shape.memory is None else f", {shape.memory:g} GB"
    return f"{_count(shape.nodes, 'node')} with {_count(shape.gpus, 'GPU')}, {_count(shape.cpus, 'CPU')}{memory}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def shortage(shape: Shape, nodes: Sequence[Node]) -> list[str]:
    """What no node has, one sentence each."""
    most = {
        "gpus": max((node.gpus for node in nodes), default=0), "cpus": max((node.cpus for node in nodes), default=0),
        "memory": max((node.memory for node in nodes), default=0) / 1024,
    }  # fmt: skip
    asked = {"gpus": shape.gpus, "cpus": shape.cpus, "memory": shape.memory or 0}
    found = [f"lower {key}: no node has more than {most[key]:g}" for key, value in asked.items() if value > most[key]]
    return found + ([f"lower nodes: there are {len(nodes)}"] if shape.nodes > len(nodes) else [])


def batch_file(root: Path, profile: Profile, name: str) -> str:
    """The batch file of one worker, as a launch would submit it."""
    array = {"shape": name, "workers": 1, "exclude": list(profile.shapes[name].exclude)}
    executor = arrays.make_executor(root, "doctor", 1, profile, f"tidemark-doctor-{name}", array, dry=True)
    return str(executor._make_submission_file_text(executor._submitit_command_str, "doctor"))


def refusal(text: str) -> tuple[bool, str]:
    """Whether sbatch would refuse a batch file, and what it says; nothing is submitted."""
    try:
        with arrays.outside_a_job():
            done = subprocess.run(
                ["sbatch", "--test-only"], input=text, capture_output=True, text=True, timeout=SECONDS, check=False
            )
    except subprocess.TimeoutExpired:
        return True, f"sbatch did not answer within {SECONDS} s"
    said = [line.removeprefix("sbatch: ").removeprefix("error: ") for line in done.stderr.splitlines() if line.strip()]
    return done.returncode != 0, re.sub(r"^Job \d+ to start", "could start", "; ".join(said))
