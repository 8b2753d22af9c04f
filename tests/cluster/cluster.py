"""A real Slurm of several nodes on this one machine: `up` starts it in a folder, `down` ends all of it.

As root every node is a machine of its own as far as Slurm and torch can tell: its own network, process numbers, host name,
mounts and shared memory ("ns" mode). So is the controller's, with slurmctld, slurmdbd, MariaDB and munge. The one thing
that this machine sees of their network is one end of a cable, `tideK`, which goes when the controller's namespace does: a
run that is killed leaves nothing to trip over. Any other user gets "flat" mode: the same daemons on loopback ports.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fcntl import LOCK_EX, flock
from functools import cached_property
from pathlib import Path

from tests.cluster.client import Client
from tests.cluster.config import HEAD, LOGIN
from tests.cluster.processes import Processes, children, kill, name_of, until

LIMIT = 60  # seconds that anything may take to come up on a busy machine
UNSHARE = ("unshare", "--net", "--pid", "--uts", "--ipc", "--mount", "--fork", "--kill-child", "--mount-proc")


@dataclass(frozen=True, kw_only=True)
class Cluster(Client):
    """A cluster in a folder, and (inherited) what its users do. Every method works on one that another process has started."""

    # -- machines and daemons

    @cached_property
    def processes(self) -> Processes:
        return Processes(folder=self.place.folder)

    def start(self, name: str, *words: object) -> None:
        """Start a daemon of the controller's machine, if it does not run."""
        if not self.processes.pid(name):
            self.processes.spawn(name, *self._on_head(), *words, extra=self._extra)

    @property
    def _extra(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.place.slurm_conf), "MYSQL_UNIX_PORT": str(self.place.mariadb)}

    def _on_head(self) -> list[str]:
        if self.place.mode == "flat":
            return []
        return ["nsenter", "--net", "--uts", "--target", str(self.processes.pid("head"))]

    def start_munge(self) -> None:
        folder = self.place.folder
        if not (folder / "munge" / "key").exists():
            self.run("mungekey", "--create", f"--keyfile={folder}/munge/key")
        if not self.processes.pid("munged"):
            for left in (folder / "run").glob("munge.sock*"):
                left.unlink()
        paths = [f"--{option}-file={folder}/munge/{option}" for option in ("key", "seed")]
        words = [f"--socket={self.place.munge}", f"--pid-file={folder}/run/own-munged.pid", *paths]
        self.start("munged", "munged", "--foreground", "--num-threads=4", *words)
        until(lambda: self.place.munge.is_socket(), LIMIT, "munged")

    def start_mariadb(self) -> None:
        folder = self.place.folder
        defaults = f"--defaults-file={folder}/etc/my.cnf"
        if not (folder / "db" / "ready").exists():
            shutil.rmtree(folder / "db", ignore_errors=True)
            words = [
                "mariadb-install-db",
                defaults,
                f"--user={self.place.user}",
                "--skip-test-db",
                "--skip-name-resolve",
            ]
            self.run(*words, f"--auth-root-socket-user={self.place.user}")
            (folder / "db" / "ready").touch()
        if not self.processes.pid("mariadbd"):
            self.place.mariadb.unlink(missing_ok=True)
        self.start("mariadbd", "mariadbd", defaults)
        self._until_runs("mariadb", "--no-defaults", "-S", self.place.mariadb, "-e", "select 1")

    def start_slurmdbd(self) -> None:
        self.start("slurmdbd", "slurmdbd", "-D")
        self._until_runs("sacctmgr", "-nQ", "show", "cluster")

    def stop_slurmdbd(self) -> None:
        """Accounting is away; the controller keeps what it has to say until it is back."""
        self.processes.stop("slurmdbd")

    def start_controller(self) -> None:
        self.start("slurmctld", "slurmctld", "-D")
        until(lambda: "is UP" in self.run("scontrol", "ping", check=False), LIMIT, "slurmctld")

    def stop_controller(self, number: int = signal.SIGTERM) -> None:
        """By SIGKILL it loses what came in the last 5 s or so, and gives the same job numbers out again."""
        self.processes.stop("slurmctld", number)

    def _until_runs(self, *words: object) -> None:
        def runs() -> bool:
            return subprocess.run([*map(str, words)], env=self.env, capture_output=True, check=False).returncode == 0

        until(runs, LIMIT, " ".join(map(str, words)))

    # -- nodes

    def kill_node(self, name: str) -> None:
        """The power of a node fails: every process on it is gone, and nobody is told. In flat mode jobs live on."""
        self.processes.stop(name, signal.SIGKILL)

    def restore_node(self, name: str) -> None:
        """Boot a node that was killed, or start its slurmd if only that was, and wait until Slurm uses it."""
        began = time.time()
        self._start_node(name)
        self._until_back(name, began)

    def _start_node(self, name: str) -> None:
        slurmd = ("slurmd", "-D", "-N", name)
        if self.place.mode == "flat":
            if not self.processes.pid(name):
                self.processes.spawn(name, *slurmd, extra=self._extra)
        elif not self.processes.pid(name):
            self._boot(name)
        elif not self._slurmd(name):
            self.processes.spawn(f"{name}-slurmd", *self._inside(name), *slurmd, extra=self._extra)

    def _boot(self, name: str) -> None:
        # Uptime starts at 0 where the kernel can do that: Slurm sees a reboot and ends the node's jobs at once, if it came
        # after the node's last sign of life, in whole seconds.
        if (self.place.folder / "run" / f"{name}.pid").exists():
            time.sleep(2)
        uptime = Path("/proc/uptime").read_text().split(".")[0]
        clock = ["--time", "--boottime", f"-{uptime}"] if Path("/proc/self/ns/time").exists() else []
        etc, address = self.place.folder / "etc", self.place.address(int(name.rsplit("n", 1)[1]))
        words = ["bash", etc / "node", name, address, etc / "hosts"]
        pid = self.processes.spawn(name, UNSHARE[0], *clock, *UNSHARE[1:], *words, extra=self._extra)
        self._own_network(pid)
        self.run(
            *self._on_head(), "ip", "link", "del", name, check=False
        )  # a node that was killed a moment ago has its yet
        cable = f"ip link add {name} type veth peer name eth0 netns {pid} && ip link set {name} master lan up"
        self.run(*self._on_head(), "sh", "-c", cable)

    def _own_network(self, pid: int) -> None:
        here = os.readlink("/proc/self/ns/net")
        until(lambda: os.readlink(f"/proc/{pid}/ns/net") != here, LIMIT, "a namespace")

    def _inside(self, name: str) -> list[str]:
        """What goes before a command that runs on a node."""
        if self.place.mode == "flat":
            return []
        first = children(self.processes.pid(name))
        if not first:
            raise ValueError(f"node {name} is not up; those of this cluster: {', '.join(self.nodes)}")
        return ["nsenter", "--all", "--target", str(first[0])]

    def on_node(self, name: str, *words: object, check: bool = True) -> str:
        """Run a command on a node, outside any job."""
        return self.run(*self._inside(name), *words, check=check)

    def _slurmd(self, name: str) -> int:
        """The number, here, of a node's slurmd; 0 if it does not run."""
        if self.place.mode == "flat":
            return self.processes.pid(name)
        below = [*children(self.processes.pid(name)), self.processes.pid(f"{name}-slurmd")]
        return next((pid for parent in below for pid in children(parent) if name_of(pid) == "slurmd"), 0)

    def kill_slurmd(self, name: str) -> None:
        """Only the daemon dies; jobs go on."""
        kill(self._slurmd(name))
        until(lambda: not self._slurmd(name), LIMIT, f"the end of slurmd on {name}")

    def cut_node(self, name: str) -> None:
        """Pull a node's network cable: it goes on alone (ns mode)."""
        self.run(*self._on_head(), "ip", "link", "set", name, "down")

    def heal_node(self, name: str) -> None:
        self.run(*self._on_head(), "ip", "link", "set", name, "up")

    def _until_back(self, name: str, since: float) -> None:
        def usable() -> bool:
            shown = dict(
                word.split("=", 1)
                for word in self.run("scontrol", "-o", "show", "node", name, check=False).split()
                if "=" in word
            )
            started = shown.get("SlurmdStartTime", "None")
            if started[:1] != "2" or time.mktime(time.strptime(started, "%Y-%m-%dT%H:%M:%S")) < int(since):
                return False
            if "DRAIN" in shown["State"] or "DOWN" in shown["State"]:  # by an earlier test, or "Duplicate jobid"
                self.run("scontrol", "update", f"nodename={name}", "state=resume", check=False)
            return shown["State"].split("+")[0] in ("IDLE", "MIXED", "ALLOCATED")

        until(usable, LIMIT, f"node {name}")

    # -- the whole

    def start_head(self) -> None:
        """The controller's machine, the network `lan` in it, and a cable from there to here."""
        if self.place.mode == "flat" or self.processes.pid("head"):
            return
        self._sweep()  # of a cluster that lost its network nothing can be kept
        pid = self.processes.spawn("head", "unshare", "--net", "--uts", "sleep", "infinity", extra={})
        self._own_network(pid)
        self.run("ip", "link", "add", self._cable, "type", "veth", "peer", "name", "login", "netns", pid)
        self.run("ip", "addr", "add", f"{self.place.address(LOGIN)}/24", "dev", self._cable)
        self.run("ip", "link", "set", self._cable, "up")
        there = (
            f"hostname {self.place.head}; ip link set lo up; ip link add lan type bridge && ip link set login master lan up"
            f" && ip addr add {self.place.address(HEAD)}/24 dev lan && ip link set lan up"
        )
        self.run(*self._on_head(), "sh", "-c", there)

    @property
    def _cable(self) -> str:
        return f"tide{self.place.number}"

    def up(self) -> None:
        """Start what is not up, and mend what is: whatever was done to the cluster, afterwards it is whole."""
        with locked(self.place.folder / "lock"):
            began = time.time()
            self.start_head()
            self.start_munge()
            if self.options.accounting:
                self.start_mariadb()
                self.start_slurmdbd()
            self.start_controller()
            fresh = [name for name in self.nodes if not self._slurmd(name)]
            for name in fresh:
                self._start_node(name)
            for name in self.nodes:
                if self.place.mode == "ns":
                    self.heal_node(name)
                self._until_back(name, began if name in fresh else 0)
            if self.options.accounting and not self.run("sacctmgr", "-nP", "show", "account", "lab"):
                self.run("sacctmgr", "-iQ", "add", "account", "lab")
                self.run("sacctmgr", "-iQ", "add", "user", self.place.user, "account=lab")

    def down(self, *, wipe: bool = False) -> None:
        """End every process of the cluster, jobs included; `wipe` deletes its folder too."""
        with locked(self.place.folder / "lock"):
            for name in self.nodes:
                self.processes.stop(name, signal.SIGKILL if self.place.mode == "ns" else signal.SIGTERM)
            for name in ("slurmctld", "slurmdbd", "mariadbd", "munged"):
                self.processes.stop(name, signal.SIGKILL if wipe else signal.SIGTERM)
            self._sweep()
        if wipe:
            shutil.rmtree(self.place.folder)

    def _sweep(self) -> None:
        """End what is left of the cluster, and wait until the kernel has taken its network and groups away."""
        self.processes.sweep(f"SLURM_CONF={self.place.slurm_conf}".encode())
        if self.place.mode == "ns":
            until(lambda: not Path("/sys/class/net", self._cable).exists(), LIMIT, f"the end of {self._cable}")
        if self.place.cgroup:
            self._remove_cgroups()

    def _remove_cgroups(self) -> None:
        tops = [Path("/sys/fs/cgroup", kind, f"slurm_{name}") for name in self.nodes for kind in ("memory", "freezer")]

        def gone() -> bool:
            for top in tops:
                for folder, _, _ in os.walk(top, topdown=False):
                    with suppress(OSError):  # its last process has not quite gone
                        os.rmdir(folder)
            return not any(top.exists() for top in tops)

        until(gone, LIMIT, "empty cgroups")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time."""
    with path.open("w") as file:
        flock(file, LOCK_EX)
        yield
