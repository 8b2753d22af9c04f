"""The cluster by hand: python -m tests.cluster up | down | kill_node | ... (see README.md)."""

import argparse
import os
import select
import time
from pathlib import Path

from tests.cluster.config import Options
from tests.cluster.founding import create, load

FAULTS = (
    "kill_node", "restore_node", "cut_node", "heal_node", "kill_slurmd",
    "stop_controller", "start_controller", "stop_slurmdbd", "start_slurmdbd",
)  # fmt: skip


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description="A real Slurm on this one machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start a cluster, or what is missing of it")
    up.add_argument("folder", type=Path, help="all it writes is here; new, or where it was")
    for name in ("nodes", "cpus", "memory", "gpus", "grace"):
        up.add_argument(f"--{name}", type=int, default=getattr(Options, name), help="default %(default)s")
    up.add_argument("--preempt", choices=["requeue", "cancel"], default="requeue", help="what happens in partition low")
    up.add_argument("--no-accounting", dest="accounting", action="store_false", help="no slurmdbd, no MariaDB")
    up.add_argument("--flat", action="store_true", help="no namespaces (as for a user who may not make them)")
    up.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a line of slurm.conf")
    down = commands.add_parser("down", help="end it and everything that runs in it")
    down.add_argument("folder", type=Path)
    down.add_argument("--wipe", action="store_true", help="delete the folder too")
    down.add_argument("--after", type=int, metavar="PID", help="wait for the end of this process first")
    for fault in FAULTS:
        command = commands.add_parser(fault)
        command.add_argument("folder", type=Path)
        if fault.endswith(("node", "slurmd")):
            command.add_argument("node")
    return parser


def up(given: argparse.Namespace) -> None:
    began = time.monotonic()
    words = {key: value for key, value in vars(given).items() if key in Options.__dataclass_fields__}
    options = Options(**words, settings=dict(line.split("=", 1) for line in given.set))
    if (given.folder / "etc" / "cluster.json").exists():
        cluster = load(given.folder)
        if cluster.options != options:
            raise ValueError(f"{str(given.folder)!r} holds another cluster ({cluster.options}): down --wipe it first")
    else:
        cluster = create(given.folder, options)
    cluster.up()
    print(f"{', '.join(cluster.nodes)} up after {time.monotonic() - began:.1f} s ({cluster.place.mode} mode)")
    print(f". {cluster.place.folder}/etc/env.sh")


def down(given: argparse.Namespace) -> None:
    if given.after:
        try:
            select.select([os.pidfd_open(given.after)], [], [])
        except ProcessLookupError:
            pass  # it has ended already
    if given.folder.exists():  # else it was wiped meanwhile
        load(given.folder).down(wipe=given.wipe)


def main() -> None:
    given = arguments().parse_args()
    if given.command in FAULTS:
        getattr(load(given.folder), given.command)(*([given.node] if "node" in given else []))
    else:
        {"up": up, "down": down}[given.command](given)


if __name__ == "__main__":
    try:
        main()
    except ValueError as wrong:
        raise SystemExit(f"error: {wrong}") from None
