"""A task beside the first of an allocation of several nodes: it runs what task 0 says, for the ranks of its node."""

import importlib
import select
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jobs
from slurm import profiles, submissions
from slurm.allocation import Allocation
from slurm.attempt import Child, Task
from slurm.nodes import Link, join
from toolkit.manifest.files import discard
from toolkit.stage import Group
from toolkit.study import Cell


@dataclass(kw_only=True)
class _Peer:
    root: Path
    study: str
    given: Allocation
    cells: dict[str, Cell]
    fits: dict[str, profiles.Fit]
    link: Link
    child: Child | None = None
    stop: bool = False


def help_out(root: Path, study: str, launch: int, given: Allocation) -> int:
    """Run what task 0 says until it says that this is all, or is gone; returns how many stages that were."""
    assert given.slurm is not None
    peer: _Peer | None = None
    stop = False

    def hear(_number: int, _frame: Any) -> None:
        nonlocal stop
        stop = True
        if peer is not None and peer.child is not None:
            peer.child.signal(signal.SIGUSR2)

    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, hear)
    link = join(submissions.meeting_file(root, study, launch, given.name, given.slurm), given.node, lambda: stop)
    if link is None:
        return 0
    cells = submissions.cells(root, study, launch)
    fits = profiles.fits(given.profile, cells)
    peer = _Peer(
        root=root, study=study, given=given, cells={c.fingerprint: c for c in cells}, fits=fits, link=link
    )  # fmt: skip
    for name in sorted({name for c in cells if _shared(peer, c) for name in getattr(jobs.load(c.job), "WARM", ())}):
        importlib.import_module(name)
    return _serve(peer, lambda: stop)


def _shared(peer: _Peer, cell: Cell) -> bool:
    fit = peer.fits.get(cell.fingerprint)
    return fit is not None and fit.shape.nodes > 1


def _serve(peer: _Peer, stopping: Any) -> int:
    ran = 0
    while True:
        child = peer.child
        sock = peer.link.sock.fileno()
        ready = select.select([sock, child.pidfd] if child else [sock], [], [])[0]
        if child is not None and child.pidfd in ready:
            _report(peer, child)
        if sock in ready:
            heard = peer.link.hear()
            if heard is None or any(words["do"] == "end" for words in heard):
                if peer.child is not None:
                    peer.child.signal(signal.SIGKILL)
                    _report(peer, peer.child)
                return ran
            for words in heard:
                if words["do"] == "run":
                    ran += 1
                    _start(peer, words, stopping)
                else:
                    if peer.child is not None:
                        peer.child.signal(signal.SIGKILL)
                        _report(peer, peer.child)
                    peer.link.tell({"event": "stopped"})


def _start(peer: _Peer, words: Mapping[str, Any], stopping: Any) -> None:
    cell = peer.cells[words["fingerprint"]]
    group = Group(
        node=peer.given.node, nodes=peer.given.nodes, address=words["address"], port=words["port"]
    )  # fmt: skip
    task = Task(
        root=peer.root, study=peer.study, cell=cell, number=words["number"], group=group, stopping=stopping,
        resources=peer.fits[cell.fingerprint].resources(words["halvings"]),
    )  # fmt: skip
    task.out.mkdir(parents=True)
    peer.child = Child(task)
    if stopping():
        peer.child.signal(signal.SIGUSR2)


def _report(peer: _Peer, child: Child) -> None:
    assert peer.given.slurm is not None
    peer.link.tell({**child.report(), "node": peer.given.slurm["node"]})
    if child.task.out.exists():
        discard(child.task.out)
    peer.child = None
