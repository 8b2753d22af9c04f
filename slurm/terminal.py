"""What the commands share: their arguments, the opened study, the ways to print and to stop."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from slurm import submissions
from toolkit import lookup, study_file
from toolkit.study import Cell, Study

FAILED, RUNNING, INTERRUPTED = 3, 4, 130
out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)  # a pipe has no width
err = Console(stderr=True, highlight=False, soft_wrap=True)

StudyPath = Annotated[Path, typer.Argument(metavar="STUDY", help="A study file (.yaml, or .py that defines `study`).")]
Root = Annotated[Path, typer.Option(envvar="TIDEMARK_ROOT", help="The folder of artifacts, work in progress and logs.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="STAGE.FIELD=VALUE", help="Override a field, an axis or a path; may be repeated."),
]
ClusterName = Annotated[
    str,
    typer.Option(
        "--cluster", envvar="TIDEMARK_CLUSTER", help="A profile in configs/clusters, or the path of one of your own."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
CellName = Annotated[
    str,
    typer.Argument(
        metavar="CELL", help="As `status` prints it, `tuned[step=100]`, or the first digits of its fingerprint."
    ),
]
DEFAULT_ROOT = Path("runs")
LOCAL = "local"


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A study with its cells, under a root."""

    study: Study
    root: Path
    cells: list[Cell]


def open_study(path: Path, root: Path, sets: list[str] | None) -> Opened:
    """Read and expand a study."""
    study = study_file.load(path, sets or ())
    root = root.expanduser().absolute()
    return Opened(study=study, root=root, cells=submissions.cells_of(root, study))


def find_cell(opened: Opened, name: str) -> Cell:
    """The cell that a person names.

    Raises:
        ValueError: no cell, or more than one, has that name; the message lists the nearest.
    """
    found = find_cells(opened, name)
    if len({cell.fingerprint for cell in found}) == 1:
        return found[0]
    some = ", ".join(cell.name for cell in found[:8])
    raise ValueError(f"{name!r} is {len(found)} cells; choose one: {some}{', ...' if len(found) > 8 else ''}")


def find_cells(opened: Opened, name: str) -> list[Cell]:
    """The cells that a person names: one, or all of a stage.

    Raises:
        ValueError: none has that name; the message lists the nearest.
    """
    wanted = name.replace(" ", "")
    digits = len(wanted) >= 4
    found = [
        c for c in opened.cells if c.name.replace(" ", "") == wanted or (digits and c.fingerprint.startswith(wanted))
    ]
    found = found or [c for c in opened.cells if c.stage == wanted]
    if found:
        return found
    same_stage = [c.name for c in opened.cells if c.stage == wanted.split("[")[0]]
    raise ValueError(lookup.unknown("cell", name, same_stage[:20] or {c.stage for c in opened.cells}))


def print_json(content: Any) -> None:
    sys.stdout.write(json.dumps(content, indent=1, default=str) + "\n")


def write_out(text: str, output: Path | None) -> None:
    """Print a text, or write it to the file that was asked for."""
    if output is None:
        typer.echo(text, nl=not text.endswith("\n"))
    else:
        place_for(output).write_text(text, encoding="utf-8")


def place_for(output: Path) -> Path:
    """The file that a person asked for, with the folders above it.

    Raises:
        ValueError: a folder has its name, or a file has that of a folder above it.
    """
    if output.is_dir():
        raise ValueError(f"{str(output)!r} is a folder: name a file in it")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"{str(output)!r} cannot be written: a file has the name of a folder above it") from None
    return output


def stop(message: str, code: int) -> NoReturn:
    err.print(f"[red]{escape(message)}[/]")
    raise typer.Exit(code)
