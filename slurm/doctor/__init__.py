"""`tidemark doctor`: hold a profile against its cluster before the first study, and leave nothing behind.

Checks are plain functions that give lines: `site` and `shape` ask Slurm, `root` looks at the folder, `nodes` sends one
small job a shape, in which `probe` runs and talks by `exchange`, and `verdict` reads what they brought back. `rounds`
goes through them all.
"""

from typing import Annotated

import typer
from rich.markup import escape

from slurm import profiles
from slurm.doctor.line import Line
from slurm.terminal import DEFAULT_ROOT, FAILED, LOCAL, AsJson, ClusterName, Root, out, print_json, stop
from toolkit.lookup import unknown

COLORS = {"ok": "green", "warning": "yellow", "failed": "red"}


def doctor(
    cluster: ClusterName = LOCAL,
    root: Root = DEFAULT_ROOT,
    shape: Annotated[str | None, typer.Option(metavar="NAME", help="Only this shape of the profile.")] = None,
    wait: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="That the small jobs may wait to start; 0: submit none.")
    ] = 300,
    as_json: AsJson = False,
) -> None:
    """Hold a profile against its cluster: Slurm, limits, the root and, by small jobs, what the nodes are like.

    Example: `tidemark doctor --cluster slurm-generic --wait 600`
    """
    from slurm.doctor import rounds

    profile, _ = profiles.load(cluster)
    if shape is not None and shape not in profile.shapes:
        raise ValueError(f"--shape: {unknown('shape', shape, profile.shapes)}")
    names = [shape] if shape is not None else list(profile.shapes)
    lines: list[Line] = []

    def tell(line: Line) -> None:
        lines.append(line)
        if not as_json:
            _print(line)

    rounds.examine(root.expanduser().absolute(), profile, names, wait, tell)
    counts = {level: sum(line.level == level for line in lines) for level in COLORS}
    if as_json:
        print_json({**counts, "lines": [vars(line) for line in lines]})
    else:
        out.print(", ".join(f"{count} {level}" for level, count in counts.items() if count))
    if counts["failed"]:
        stop("mend what failed, then ask again; a launch would meet it too", FAILED)


def _print(line: Line) -> None:
    color = COLORS[line.level]
    needed = f"  [dim](needed: {escape(line.needed)})[/]" if line.needed else ""
    out.print(f"[{color}]{line.level:8}[/] {escape(line.where)}, {escape(line.what)}: {escape(line.found)}{needed}")
    if line.mend:
        out.print(f"         [bold]mend:[/] {escape(line.mend)}")
