"""What the daemons of the cluster read: slurm.conf and its companions, as text, from a few options.

Values are dictionaries until the last moment, so that a test can change any line of slurm.conf (`Options.settings`).
"""

import shlex
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

HEAD, LOGIN = (254, 253)  # last bytes of the addresses of the controller and of this machine on the nodes' network

# Process 1 of a node: NAME ADDRESS HOSTS. It ends only by SIGKILL from outside, and collects orphans until then.
NODE = """
hostname "$1"
mount -t tmpfs -o size=2g tmpfs /dev/shm
mount --bind "$3" /etc/hosts
ip link set lo up
until ip link show eth0 >/dev/null 2>&1; do sleep 0.05; done
ip addr add "$2/24" dev eth0 && ip link set eth0 up
slurmd -N "$1"
while :; do wait; sleep 1; done
"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """A cluster as it was asked for. What a node has is a claim: nothing is pinned to, or compared with, the machine."""

    nodes: int = 3
    cpus: int = 4
    memory: int = 8192  # MB
    gpus: int = 2  # links to /dev/null: Slurm hands them out and sets CUDA_VISIBLE_DEVICES
    preempt: Literal["requeue", "cancel"] = "requeue"  # what becomes of a job in `low` whose place is wanted
    grace: int = 20  # seconds between its signal and its end
    accounting: bool = True
    flat: bool = False  # no namespaces, although they would work
    settings: Mapping[str, str] = field(default_factory=dict)  # more lines of slurm.conf, which replace ours

    def __post_init__(self) -> None:
        if not 1 <= self.nodes <= 64:
            raise ValueError(f"{self.nodes} nodes: 1 to 64")
        if self.preempt not in ("requeue", "cancel"):
            raise ValueError(f"preempt {self.preempt!r}: 'requeue' or 'cancel'")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a cluster stands. `number` tells clusters on one machine apart: it is in addresses, ports and node names."""

    folder: Path
    number: int
    mode: Literal["ns", "flat"]
    user: str
    host: str  # this machine's own name
    cgroup: bool  # jobs are held in cgroups: memory limits end in OUT_OF_MEMORY

    @property
    def head(self) -> str:
        return f"c{self.number}head" if self.mode == "ns" else self.host

    def address(self, last: int) -> str:
        # 198.18.0.0/15 is set aside for laboratories (RFC 2544): no real network is hidden by ours.
        return f"198.18.{self.number}.{last}" if self.mode == "ns" else "127.0.0.1"

    def port(self, offset: int) -> int:
        return 26800 + offset + (80 * self.number if self.mode == "flat" else 0)

    def node(self, index: int) -> str:
        return f"c{self.number}n{index}"

    @property
    def slurm_conf(self) -> Path:
        return self.folder / "etc" / "slurm.conf"

    @property
    def munge(self) -> Path:
        return self.folder / "run" / "munge.sock"

    @property
    def mariadb(self) -> Path:
        return self.folder / "run" / "mariadb.sock"


def files(place: Place, options: Options, first_job: int) -> dict[str, str]:
    """Name of a file in etc/ -> its text."""
    found = {
        "env.sh": f"export SLURM_CONF={shlex.quote(str(place.slurm_conf))}\n",
        "slurm.conf": _slurm(place, options, first_job),
        "gres.conf": _gres(place, options),
        "cgroup.conf": "CgroupPlugin=cgroup/v1\nConstrainRAMSpace=yes\n",
        "hosts": _hosts(place, options),
        "node": NODE,
    }
    if options.accounting:
        found |= {"slurmdbd.conf": _slurmdbd(place), "my.cnf": _mariadb(place)}
    return found


def _lines(values: Mapping[str, object]) -> str:
    return "".join(f"{key}={value}\n" for key, value in values.items())


def _slurm(place: Place, options: Options, first_job: int) -> str:
    values: dict[str, object] = {
        "ClusterName": f"lab{place.number}",
        "SlurmctldHost": f"{place.head}({place.address(HEAD)})",
        "SlurmctldPort": place.port(0),
        "SlurmUser": place.user,
        "SlurmdUser": place.user,
        # submitit names its files by job number and would take the result that a job of an earlier cluster left
        "FirstJobId": first_job,
        "AuthType": "auth/munge",
        # cred_expire is also how long a requeued job waits before it may start (default 120 s). Not below KillWait + 2:
        # a job requeued off a lost node would meet its old self there, and the node be drained ("Duplicate jobid").
        "AuthInfo": f"socket={place.munge},cred_expire=10",
        "StateSaveLocation": place.folder / "state",
        "SlurmdSpoolDir": place.folder / "spool" / "%n",
        "SlurmctldPidFile": place.folder / "run" / "own-slurmctld.pid",
        "SlurmdPidFile": place.folder / "run" / "own-slurmd-%n.pid",
        "SlurmctldLogFile": place.folder / "log" / "slurmctld.log",
        "SlurmdLogFile": place.folder / "log" / "slurmd-%n.log",
        "MailProg": "/bin/true",
        "MpiDefault": "none",
        "SlurmdParameters": "config_overrides",  # believe CPUs= and RealMemory= whatever the machine has
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_CPU_Memory",
        "DefMemPerCPU": options.memory // options.cpus,
        "SchedulerType": "sched/backfill",
        "SchedulerParameters": "batch_sched_delay=0,sched_interval=5,bf_interval=2",
        "PreemptType": "preempt/partition_prio",
        "PreemptMode": "REQUEUE",
        # preemption sends the signal that the job asked for; without it TERM, which submitit ignores
        "SlurmctldParameters": "preempt_send_user_signal",
        "SlurmctldTimeout": 10,
        "SlurmdTimeout": 15,  # a silent node is DOWN after 20-35 s
        "ReturnToService": 2,  # and comes back by registering
        "KillWait": 5,
        "MessageTimeout": 10,
        "JobRequeue": 1,
        "JobAcctGatherType": "jobacct_gather/linux",
        "JobAcctGatherFrequency": "task=2",
        "ProctrackType": "proctrack/cgroup" if place.cgroup else "proctrack/linuxproc",
        "TaskPlugin": "task/cgroup" if place.cgroup else "task/none",
    }
    if not place.cgroup:
        values["JobAcctGatherParams"] = "OverMemoryKill"  # by polling: killed within 2 s, ends FAILED
    if place.mode == "flat" and _on_loopback(place.host):  # then slurmctld and slurmd listen there and nowhere else
        values["CommunicationParameters"] = "NoInAddrAny,NoCtldInAddrAny"
    values["AccountingStorageType"] = f"accounting_storage/{'slurmdbd' if options.accounting else 'none'}"
    if options.accounting:
        values |= {
            "AccountingStorageHost": place.address(HEAD),
            "AccountingStoragePort": place.port(1),
            "AccountingStoragePass": place.munge,  # with munge no password: AuthInfo does not cover slurmdbd
        }
    if options.gpus:
        values |= {"GresTypes": "gpu", "AccountingStorageTRES": "gres/gpu"}  # as sites that have any do
    return _lines(values | dict(options.settings)) + _nodes(place, options) + _partitions(options)


def _on_loopback(host: str) -> bool:
    try:
        return socket.gethostbyname(host) == "127.0.0.1"
    except OSError:
        return False


def _nodes(place: Place, options: Options) -> str:
    text = ""
    for index in range(1, options.nodes + 1):
        node = place.node(index)
        host, port = (node, place.port(2)) if place.mode == "ns" else (place.host, place.port(1 + index))
        text += f"NodeName={node} NodeHostname={host} NodeAddr={place.address(index)} Port={port} CPUs={options.cpus}"
        text += f" RealMemory={options.memory}{f' Gres=gpu:{options.gpus}' if options.gpus else ''}\n"
    return text


def _partitions(options: Options) -> str:
    low = f"PreemptMode={options.preempt.upper()} GraceTime={options.grace}"
    return (
        "PartitionName=main Nodes=ALL Default=YES PriorityTier=10 PreemptMode=OFF\n"
        "PartitionName=high Nodes=ALL PriorityTier=20 PreemptMode=OFF\n"
        f"PartitionName=low Nodes=ALL PriorityTier=1 {low}\n"
    )


def _gres(place: Place, options: Options) -> str:
    gpus = f"Name=gpu File={place.folder}/dev/gpu[0-{options.gpus - 1}]\n" if options.gpus else ""
    return "AutoDetect=off\n" + gpus


def _hosts(place: Place, options: Options) -> str:
    """The nodes' /etc/hosts. The mapped addresses keep torch's reverse look-ups off DNS, where they hang."""
    named = {place.host: LOGIN, place.head: HEAD} | {place.node(i): i for i in range(1, options.nodes + 1)}
    lines = [f"{prefix}{place.address(last)} {name}" for name, last in named.items() for prefix in ("", "::ffff:")]
    return "\n".join(["127.0.0.1 localhost", *lines, ""])


def _slurmdbd(place: Place) -> str:
    return _lines({
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={place.munge}",
        "DbdHost": place.head,
        "DbdAddr": place.address(HEAD),
        "DbdPort": place.port(1),
        "SlurmUser": place.user,
        "LogFile": place.folder / "log" / "slurmdbd.log",
        "PidFile": place.folder / "run" / "own-slurmdbd.pid",
        "StorageType": "accounting_storage/mysql",
        "StorageHost": "localhost",  # by MYSQL_UNIX_PORT in its environment: Slurm has no setting for the socket
        "StorageUser": place.user,
        "StorageLoc": "slurm_acct",
    })  # fmt: skip


def _mariadb(place: Place) -> str:
    """Small, fast, unsafe on a power cut; reached through its socket only, as the user it runs as."""
    values = {
        "user": place.user,
        "datadir": place.folder / "db",
        "tmpdir": place.folder / "tmp",
        "socket": place.mariadb,
        "pid-file": place.folder / "run" / "own-mariadb.pid",
        "log-error": place.folder / "log" / "mariadb.log",
        "max_connections": 40,
        "performance_schema": "OFF",
        "key_buffer_size": "1M",
        "aria_pagecache_buffer_size": "8M",
        "innodb_buffer_pool_size": "64M",
        "innodb_log_file_size": "16M",
        "innodb_lock_wait_timeout": 900,  # slurmdbd complains of less
        "innodb_flush_log_at_trx_commit": 0,
        "innodb_flush_method": "nosync",
        "innodb_doublewrite": 0,
    }
    return "[mariadbd]\nskip-networking\nskip-name-resolve\n" + _lines(values)
