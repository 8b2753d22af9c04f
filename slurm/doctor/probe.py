"""What `tidemark doctor` measures on the nodes themselves: the function that its small jobs run, one task a node."""

import json
import os
import re
import signal
import socket
import tempfile
import threading
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from slurm import submissions
from slurm.doctor.exchange import KINDS, LEAVE_SECONDS, LONG_SECONDS, answer, ask, receive
from toolkit import provenance
from toolkit.manifest import claims
from toolkit.manifest.files import write_atomic

HUB = "https://huggingface.co"
LOGIN = "login"  # the name of the login node's side
CONTESTS, PACE_SECONDS = 30, 0.02  # how often two nodes want the same name, and how far apart
CONNECT_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a job is to look at. folder: under the root. tasks: on so many nodes. home: of the login node's Tidemark.
    endpoint: of the Hub."""

    folder: Path
    tasks: int
    gpus: int
    scratch: str | None
    home: str
    endpoint: str


def examine(order: Order) -> dict[str, Any]:
    """All that this task can find out. What it sees by itself it also leaves in the folder at once, should it not live
    to tell the rest.

    Raises:
        Silent: another task, or the login node, does not answer.
    """
    from submitit import JobEnvironment

    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # submitit would let it pass, and a cancelled job wait for KillWait
    task = JobEnvironment().global_rank
    found = facts(order)
    write_atomic(order.folder / f"facts-{task}", json.dumps(found).encode())
    if order.tasks > 1:
        found |= _with_peer(order.folder, task)
    else:
        pairs = [
            (_contest(order.folder, "a", number), _contest(order.folder, "b", number)) for number in range(CONTESTS)
        ]
        found["won"] = [first + second for first, second in pairs]
    for kind in KINDS:
        found[f"{LOGIN}-{kind}"] = ask(order.folder, str(task), LOGIN, kind)
    return found


def _with_peer(folder: Path, task: int) -> dict[str, Any]:
    """The exchange between tasks 0 and 1, and their contest for names, which both begin at the same moment."""
    if task == 1:
        torn = [answer(folder, "1", "0", kind) for kind in KINDS]
        begin = receive(folder / "begin", LEAVE_SECONDS)["at"]
        return {"torn": sum(torn), "won": _contests(folder, "1", begin)}
    found = {f"peer-{kind}": ask(folder, "0", "1", kind) for kind in KINDS}
    begin = time.time() + min(LONG_SECONDS, 3 * max(found["peer-new"]["delays"]) + 0.2)
    offset = found["peer-new"]["offset"]
    write_atomic(folder / "begin", json.dumps({"at": begin + offset}).encode(), sync=False)
    return {**found, "won": _contests(folder, "0", begin)}


def _contests(folder: Path, me: str, begin: float) -> list[list[str]]:
    won = []
    for number in range(CONTESTS):
        time.sleep(max(0.0, begin + number * PACE_SECONDS - time.time()))
        won.append(_contest(folder, me, number))
    return won


def _contest(folder: Path, me: str, number: int) -> list[str]:
    """Try to be the one who gives a name to a file by link(2), as a claim does, and to a folder by rename, as a commit
    does; which of the two succeeded."""
    mine = folder / f"out-{me}-{number}"
    mine.mkdir()
    (mine / "file").touch()  # a folder with something in it is never replaced by another
    won = ["link"] if claims.claim(folder, "0" * 64, number + 1, {"task": me}) else []
    with suppress(OSError):
        os.rename(mine, folder / f"final-{number}")
        won.append("rename")
    return won


def facts(order: Order) -> dict[str, Any]:
    """What this node is like, as this process sees it."""
    return {
        "host": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        "token": (order.folder / "token").read_text(),
        "home": _home(order.home),
        "identity": provenance.identity(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory": memory(),
        "gpus": gpus() if order.gpus else None,
        "scratch": scratch(order.scratch) if order.scratch else None,
        "internet": unreachable(order.endpoint),
    }


def _home(home: str) -> str:
    """Empty, or what is wrong with the place that Tidemark is imported from."""
    try:
        submissions.check_home({"home": home})
    except ValueError as error:
        return str(error)
    return ""


def memory() -> int:
    """Bytes that this process may use: what the machine has, or what a cgroup (version 1 or 2) allows."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, file = ("memory", "memory.limit_in_bytes") if controllers else ("", "memory.max")
        here = Path("/sys/fs/cgroup", top, path.lstrip("/"))
        for folder in (here, *here.parents):
            with suppress(OSError, ValueError):  # no such file at the top, or "max"
                limits.append(int((folder / file).read_text()))
    return min(limits)


def gpus() -> dict[str, Any]:
    """The GPUs that torch can compute on: their names, and what is wrong if some do not work."""
    import torch

    names: list[str] = []
    wrong = "" if torch.version.cuda or torch.version.hip else f"torch {torch.__version__} is a build without GPUs"
    for index in range(torch.cuda.device_count()):
        try:
            assert torch.ones(1024, device=f"cuda:{index}").sum().item() == 1024
            names.append(torch.cuda.get_device_name(index))
        except Exception as error:  # whatever a driver says
            wrong = f"GPU {index}: {error}".splitlines()[0]
    return {"names": names, "wrong": wrong, "visible": os.environ.get("CUDA_VISIBLE_DEVICES")}


def scratch(words: str) -> dict[str, Any]:
    """The profile's scratch folder on this node: its path, free bytes, and what is wrong with it."""
    path = Path(os.path.expandvars(os.path.expanduser(words)))
    if unset := re.search(r"\$\{?\w+", str(path)):
        return {"path": str(path), "free": 0, "wrong": f"the variable {unset[0]} is not set in the job"}
    made: list[Path] = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path, prefix="tidemark-doctor-") as file:
            file.write(bytes(1 << 20))
            file.flush()
            os.fsync(file.fileno())
            space = os.statvfs(path)
        return {"path": str(path), "free": space.f_bavail * space.f_frsize, "wrong": ""}
    except OSError as error:
        return {"path": str(path), "free": 0, "wrong": error.strerror or str(error)}
    finally:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


def unreachable(endpoint: str) -> str:
    """Empty if the Hub's host, or the proxy on the way there, takes connections; else why not."""
    target = urlsplit(endpoint)
    proxy = urllib.request.getproxies().get(target.scheme)
    if proxy and not urllib.request.proxy_bypass(target.hostname or ""):
        target = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    host, port = target.hostname or "", target.port or (443 if target.scheme == "https" else 80)
    said = [f"no answer within {CONNECT_SECONDS:g} s"]

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
            said[:] = [""]
        except OSError as error:
            said[:] = [error.strerror or str(error)]

    thread = threading.Thread(target=connect, daemon=True)  # asking for a name has no time limit of its own
    thread.start()
    thread.join(CONNECT_SECONDS)
    return f"{host}:{port}: {said[0]}" if said[0] else ""
