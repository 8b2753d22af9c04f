"""What the jobs on the nodes brought back, as lines: each thing that was measured against what is needed."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from slurm.doctor.exchange import KINDS, Silent
from slurm.doctor.line import Line, ok
from slurm.doctor.nodes import ABSENT, CLOSED, Visit
from slurm.doctor.probe import CONTESTS, LOGIN
from slurm.profiles import Profile, Shape
from toolkit import provenance
from toolkit.manifest.record import VISIBLE_SECONDS

SKEW_SECONDS = 5.0  # more, and times in logs and reports mislead; nothing else depends on clocks
SLACK = 0.98  # of the memory that was asked for: a kernel keeps some to itself
FEW_SCRATCH = 10 << 30
CHECKOUT = "install Tidemark editable from a checkout on shared storage; the profile's setup and python must lead to it"
VISIBLE = "choose a root on another file system, or ask for a mount with shorter caches (NFS: actimeo)"
Facts = Mapping[str, Mapping[str, Any]]  # by node


def judge(visit: Visit, profile: Profile, details: Mapping[str, str]) -> list[Line]:
    """All lines of a shape's job."""
    where, shape = f"shape {visit.shape}", profile.shapes[visit.shape]
    if visit.unmade:
        mend = "see to that, or let jobs wait longer (--wait SECONDS), and run this again"
        return [Line(level="warning", where=where, what="node checks", found=f"not made: {visit.unmade}", mend=mend)]
    facts, results = visit.facts(), visit.results()
    lines = _unseen(where, visit, details)
    if facts:
        lines += _one_house(where, facts) + _given(where, shape, facts) + _reached(where, profile, shape, facts)
    if details.get("Requeue"):
        lines.append(_requeue(where, details["Requeue"]))
    errors = [result for result in results if isinstance(result, str)]
    if wrong := next(filter(None, errors), ""):
        last = wrong.splitlines()[-1]
        unseen = f"files that one side writes are not seen by the other: {VISIBLE}"
        mend = unseen if Silent.__name__ in last else f"{CHECKOUT}; the last lines of the job: {visit.log()}"
        lines.append(_failed(where, "job", last, "to end well", mend))
    elif errors and not any(line.level == "failed" for line in lines):
        state = f"{visit.state.state} {visit.state.reason}".strip() if visit.state else "gone"
        mend = (
            f"see what it printed: {visit.log() or 'nothing'}; the profile's setup and python run before anything else"
        )
        lines.append(_failed(where, "job", f"ended as {state}, without a word from Python", "to end well", mend))
    found = [result for result in results if isinstance(result, dict)]
    return lines + (_exchange(where, visit, found) if len(found) == visit.tasks else [])


def _failed(where: str, what: str, found: str, needed: str, mend: str) -> Line:
    return Line(level="failed", where=where, what=what, found=found, needed=needed, mend=mend)


def _warning(where: str, what: str, found: str, needed: str, mend: str) -> Line:
    return Line(level="warning", where=where, what=what, found=found, needed=needed, mend=mend)


def _unseen(where: str, visit: Visit, details: Mapping[str, str]) -> list[Line]:
    """The root on each node: which have left a sign in it."""
    seen = {path.name.removeprefix("seen-") for path in visit.folder.glob("seen-*")} | set(visit.facts())
    missing = [node for node in details.get("Nodes", "").split() if node not in seen]
    needed = "the same folder on every node, writable"
    if not missing:
        return [ok(where, "root", f"the same folder, written from {', '.join(sorted(seen))}", needed)] if seen else []
    code = details.get("ExitCode", "").split(":")[0]
    words = {str(ABSENT): "is not there, or is another one", str(CLOSED): "is there and cannot be written"}
    if code not in words:
        return []
    mend = (
        "choose a root on storage that all nodes mount for writing, with --root or TIDEMARK_ROOT, or exclude the node"
    )
    return [_failed(where, "root", f"on {', '.join(missing)} the folder {words[code]}", needed, mend)]


def _spread(values: Mapping[str, Any]) -> str:
    """`2 on n1, n2`; `2 on n1; 1 on n2`."""
    nodes: dict[str, list[str]] = {}
    for node, value in values.items():
        nodes.setdefault(str(value), []).append(node)
    return "; ".join(f"{value} on {', '.join(names)}" for value, names in nodes.items())


def _one_house(where: str, facts: Facts) -> list[Line]:
    """Tidemark, Python and libraries: on all nodes what is here."""
    here = provenance.identity()
    lines = []
    strange = {node: seen["home"] for node, seen in facts.items() if seen["home"]}
    codes = {node: seen["identity"]["code"] for node, seen in facts.items()}
    if strange:
        lines.append(_failed(where, "checkout", _spread(strange), "the one of this host", CHECKOUT))
    elif set(codes.values()) != {here["code"]}:
        found = f"the same path with another code: {_spread(codes)}, {here['code']} here"
        lines.append(_failed(where, "checkout", found, "the one of this host", CHECKOUT))
    else:
        lines.append(ok(where, "checkout", f"{provenance.HOME} on {', '.join(facts)}", "the one of this host"))
    ours = _versions(here)
    theirs = {node: _versions(seen["identity"]) for node, seen in facts.items()}
    needed = "the same on all nodes, and here"
    differ = sorted(name for name in ours if len({versions[name] for versions in (ours, *theirs.values())}) > 1)
    said = "; ".join(
        f"{name}: {_spread({n: v[name] for n, v in theirs.items()})}, {ours[name]} here" for name in differ
    )
    mend = "give the profile a setup or python that leads to one environment on shared storage"
    if not differ:
        lines.append(ok(where, "Python", f"{ours['python']}, torch {ours['torch']} and the rest", needed))
    elif len({tuple(sorted(versions.items())) for versions in theirs.values()}) > 1:
        lines.append(_failed(where, "Python", said, needed, mend))
    else:
        lines.append(_warning(where, "Python", said, needed, f"{mend}; `plan` would show this as drift"))
    return lines


def _versions(identity: Mapping[str, Any]) -> dict[str, str]:
    return {"python": identity["python"], **identity["packages"]}


def _given(where: str, shape: Shape, facts: Facts) -> list[Line]:
    """CPUs, memory and GPUs as asked."""
    cpus = {node: seen["cpus"] for node, seen in facts.items()}
    found, needed = f"{_spread(cpus)}", f"{shape.cpus}"
    if min(cpus.values()) >= shape.cpus:
        lines = [ok(where, "CPUs", found, needed)]
    else:
        mend = (
            "srun has not passed them on since Slurm 22.05: put `export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK` into"
        )
        lines = [_failed(where, "CPUs", found, needed, f"{mend} the profile's setup; or the nodes have no more")]
    if shape.memory is not None:
        memory = {node: seen["memory"] / (1 << 30) for node, seen in facts.items()}
        found, needed = _spread({node: f"{size:.1f} GB" for node, size in memory.items()}), f"{shape.memory:g} GB"
        mend = "lower the shape's memory, or ask why a job may use less than it was given"
        enough = min(memory.values()) >= SLACK * shape.memory
        lines.append(ok(where, "memory", found, needed) if enough else _failed(where, "memory", found, needed, mend))
    if shape.gpus:
        lines.append(_gpus(where, shape, facts))
    return lines


def _gpus(where: str, shape: Shape, facts: Facts) -> Line:
    found = _spread({node: _names(seen["gpus"]["names"]) for node, seen in facts.items()})
    needed = f"{shape.gpus} that torch computes on"
    if all(len(seen["gpus"]["names"]) >= shape.gpus and not seen["gpus"]["wrong"] for seen in facts.values()):
        return ok(where, "GPUs", found, needed)
    wrong = "; ".join(dict.fromkeys(seen["gpus"]["wrong"] for seen in facts.values() if seen["gpus"]["wrong"]))
    visible = _spread({node: seen["gpus"]["visible"] for node, seen in facts.items()})
    mend = "install a torch that fits the driver, load its module in the profile's setup, or exclude the node"
    return _failed(
        where, "GPUs", found, needed, f"{wrong + ': ' if wrong else ''}{mend} (CUDA_VISIBLE_DEVICES: {visible})"
    )


def _names(names: Sequence[str]) -> str:
    return f"{len(names)} ({', '.join(sorted(set(names)))})" if names else "0"


def _reached(where: str, profile: Profile, shape: Shape, facts: Facts) -> list[Line]:
    """The scratch folder and the internet."""
    lines = []
    if profile.scratch is not None:
        found = _spread({
            node: told["wrong"] or f"{told['path']} with {told['free'] / (1 << 30):.0f} GB"
            for node, told in ((node, seen["scratch"]) for node, seen in facts.items())
        })  # fmt: skip
        mend = "set the profile's scratch to a folder that every node has and you can write"
        if any(seen["scratch"]["wrong"] for seen in facts.values()):
            lines.append(_failed(where, "scratch", found, "writable", mend))
        elif any(seen["scratch"]["free"] < FEW_SCRATCH for seen in facts.values()):
            lines.append(_warning(where, "scratch", found, f"{FEW_SCRATCH >> 30} GB free", f"free some, or {mend}"))
        else:
            lines.append(ok(where, "scratch", found, "writable"))
    reached = {
        node: "reached" if not seen["internet"] else f"not reached ({seen['internet']})" for node, seen in facts.items()
    }
    if shape.internet and any(seen["internet"] for seen in facts.values()):
        mend = "take `internet` off this shape, and downloads run elsewhere; or set https_proxy in the profile's setup"
        lines.append(_failed(where, "internet", _spread(reached), "reached", mend))
    elif profile.scheduler == "slurm":
        needed = "reached" if shape.internet else "no"
        lines.append(ok(where, "internet", _spread(reached), needed))
    return lines


def _requeue(where: str, flag: str) -> Line:
    if flag == "1":
        return ok(where, "requeue", "its jobs may be requeued", "allowed")
    mend = "a worker whose time is up ends; `tidemark launch` again resumes. Ask why the cluster takes --requeue away"
    return _warning(where, "requeue", "its jobs are not requeued, although they ask for it", "allowed", mend)


def _exchange(where: str, visit: Visit, found: Sequence[Mapping[str, Any]]) -> list[Line]:
    """Files and names between nodes, and clocks."""
    nodes = list(dict.fromkeys(result["host"] for result in found))
    two, here = len(found) > 1, len(nodes) < len(found)
    peers = "two processes here" if here else " and ".join(nodes)
    lines = []
    for kind in KINDS:
        delays = {f"between {peers}": found[0][f"peer-{kind}"]["delays"]} if two else {}
        if not here:
            delays |= {f"{result['host']} and this host": result[f"{LOGIN}-{kind}"]["delays"] for result in found}
        lines.append(_delay(where, kind, delays))
    if two:
        lines.append(_whole(where, found[1]["torn"]))
    for what, call in (("link", "link(2)"), ("rename", "rename")):
        lines.append(_contest(where, call, [[what in won for won in result["won"]] for result in found], peers))
    if not two:
        mend = "nothing to mend if this shape has one node; another shape's job may have had two"
        lines.append(_warning(where, "two nodes", "not made: sbatch gives one node only", "two nodes", mend))
    return lines if here else [*lines, _clocks(where, found)]


def _delay(where: str, kind: str, delays: Mapping[str, Sequence[float]]) -> Line:
    found = ", ".join(f"{who}: {median(some):.3f} s, at most {max(some):.3f} s" for who, some in delays.items())
    most = max(max(some) for some in delays.values())
    needed = f"within {VISIBLE_SECONDS:g} s"
    if most < VISIBLE_SECONDS:
        return ok(where, f"{kind} file seen", found, needed)
    return _failed(where, f"{kind} file seen", found, needed, VISIBLE)


def _whole(where: str, torn: int) -> Line:
    needed = "always the old one or the new one"
    if not torn:
        return ok(where, "replaced file", "never missing or torn", needed)
    mend = "rename(2) does not replace a file all at once here: choose a root on another file system"
    return _failed(where, "replaced file", f"missing or torn {torn} times", needed, mend)


def _contest(where: str, call: str, won: Sequence[Sequence[bool]], peers: str) -> Line:
    """won: of each task, whether it won each contest; a task that is alone has contended with itself."""
    wins = [sum(some) for some in zip(*won, strict=True)]
    needed = "one winner every time"
    if wins == [1] * CONTESTS:
        shares = " and ".join(str(sum(some)) for some in won)
        return ok(where, call, f"one winner in {CONTESTS} of {CONTESTS} contests ({peers}: {shares})", needed)
    none, more = sum(count == 0 for count in wins), sum(count > 1 for count in wins)
    mend = f"{call} is not atomic on this file system, so two workers could do the same work: choose another root"
    return _failed(where, call, f"{none} contests without a winner, {more} with two, of {CONTESTS}", needed, mend)


def _clocks(where: str, found: Sequence[Mapping[str, Any]]) -> Line:
    """How far the nodes' clocks are ahead (+) of this host's, and the first one's of the second's."""
    told = [(result["host"], "this host", result[f"{LOGIN}-new"]) for result in found]
    if len(found) > 1:
        told.append((found[0]["host"], found[1]["host"], found[0]["peer-new"]))
    said = [f"{one} {-seen['offset']:+.4f} s ± {seen['bound']:.4f} s from {other}" for one, other, seen in told]
    if all(abs(seen["offset"]) - seen["bound"] < SKEW_SECONDS for _, _, seen in told):
        return ok(where, "clocks", ", ".join(said), f"within {SKEW_SECONDS:g} s")
    mend = "times in logs and reports mislead; nothing else compares clocks. Ask for NTP on the node"
    return _warning(where, "clocks", ", ".join(said), f"within {SKEW_SECONDS:g} s", mend)
