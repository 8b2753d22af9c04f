"""A cluster's folder: what must be installed for it, where it stands, and how it is found again."""

import dataclasses
import getpass
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Literal

from tests.cluster.cluster import UNSHARE, Cluster, locked
from tests.cluster.config import Options, Place, files
from tests.cluster.processes import SEARCH

PACKAGES = ("munge", "slurmctld", "slurmd", "slurm-client", "slurmdbd", "mariadb-server-core", "mariadb-client-core")
# RUNLEVEL keeps apt from starting services. The `-core` packages leave out what would run a MariaDB of the system's.
INSTALL = f"RUNLEVEL=1 apt-get install -y --no-install-recommends {' '.join(PACKAGES)}"
PROGRAMS = (
    "munged",
    "mungekey",
    "slurmctld",
    "slurmd",
    "sbatch",
    "slurmdbd",
    "mariadbd",
    "mariadb-install-db",
    "mariadb",
)


def missing() -> list[str]:
    """The programs that are needed and not installed."""
    return [program for program in PROGRAMS if shutil.which(program, path=SEARCH) is None]


def create(folder: Path, options: Options) -> Cluster:
    """Make the folder of a new cluster; `up` starts it.

    Raises ValueError for a folder that Slurm cannot live in and for programs that are not installed.
    """
    folder = folder.resolve()
    # slurmd and mariadb-install-db come to grief on spaces; sockets have a limit; the others mean something to Slurm.
    if len(str(folder)) > 80 or set(str(folder)) & set(" #%\"'\\\t\n,[]"):
        raise ValueError(
            f"{str(folder)!r}: at most 80 characters, and no space, quote, comma, bracket, '#', '%' or '\\'"
        )
    if lacking := missing():
        raise ValueError(f"{', '.join(lacking)}: not installed; on Debian: {INSTALL}")
    for name in ("etc", "run", "log", "state", "spool", "tmp", "dev", "munge", "out"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name).chmod(0o700 if name == "munge" else 0o755)
    for index in range(options.gpus):
        (folder / "dev" / f"gpu{index}").symlink_to("/dev/null")
    mode: Literal["ns", "flat"] = "ns" if not options.flat and namespaces() else "flat"
    with locked(Path(tempfile.gettempdir(), f"tidemark-cluster-{os.getuid()}.lock")):  # until the number is taken
        cluster = Cluster(place=_place(folder, mode), options=options)
        _write(cluster)
        cluster.start_head()
    return cluster


def namespaces() -> bool:
    """Whether this user may make namespaces and a network between them."""
    words = [*UNSHARE, "ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1"]
    return os.geteuid() == 0 and subprocess.run(words, capture_output=True, check=False).returncode == 0


def _place(folder: Path, mode: Literal["ns", "flat"]) -> Place:
    def free(number: int) -> bool:
        if mode == "ns":
            return not Path(f"/sys/class/net/tide{number}").exists()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", 26800 + 80 * number)) != 0

    # A flat cluster holds its number only once its controller listens: two that start at once begin at different ones.
    first = 0 if mode == "ns" else os.getpid() % 70
    groups = [Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup/freezer")]
    return Place(
        folder=folder,
        number=next(number for number in [*range(first, 70), *range(first)] if free(number)),
        mode=mode,
        user=getpass.getuser(),
        host=socket.gethostname().split(".")[0],
        cgroup=mode == "ns" and all(os.access(group, os.W_OK) for group in groups),  # version 1
    )


def _write(cluster: Cluster) -> None:
    etc = cluster.place.folder / "etc"
    for name, text in files(cluster.place, cluster.options, int(time.time()) % 60_000_000 + 1).items():
        (etc / name).touch(mode=0o600 if name == "slurmdbd.conf" else 0o644)  # Slurm refuses one that others can read
        (etc / name).write_text(text)
    place = dataclasses.asdict(cluster.place) | {"folder": str(cluster.place.folder)}
    kept = {"place": place, "options": dataclasses.asdict(cluster.options)}
    (etc / "cluster.json").write_text(json.dumps(kept, indent=1))


def load(folder: Path) -> Cluster:
    """The cluster that was created in a folder."""
    try:
        kept = json.loads((folder / "etc" / "cluster.json").read_text())
    except FileNotFoundError:
        raise ValueError(f"{str(folder)!r} holds no cluster: `python -m tests.cluster up` makes one") from None
    place = Place(**kept["place"] | {"folder": Path(kept["place"]["folder"])})
    return Cluster(place=place, options=Options(**kept["options"]))
