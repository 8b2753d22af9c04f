"""The command that stores fine-tuned models as differences to what they were made from, and makes them plain again."""

import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from slurm import submissions
from slurm.board import is_transient
from slurm.queue import Queue
from slurm.terminal import (
    DEFAULT_ROOT,
    FAILED,
    AsJson,
    Opened,
    Root,
    Sets,
    StudyPath,
    err,
    find_cells,
    open_study,
    out,
    print_json,
    stop,
)
from toolkit.checkpoints import compact as compaction
from toolkit.manifest import bases, record
from toolkit.manifest.files import check_root
from toolkit.plan import folder, survey
from toolkit.stage import Artifact
from toolkit.study import FOLDER, Cell


@dataclass(kw_only=True)
class Line:
    """What became of an artifact: bytes of its files before and after, the cell that it is a change to, and a remark.

    failed: it is damaged, or what it needs is gone.
    """

    cell: Cell
    before: int
    after: int
    base: str = ""
    remark: str = ""
    failed: bool = False

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        words = {name: getattr(self, name) for name in ("before", "after", "base", "remark", "failed")}
        return {"cell": self.cell.name, "fingerprint": self.cell.fingerprint, **words}


def compact(
    study: StudyPath,
    cells: Annotated[
        list[str] | None, typer.Argument(metavar="[CELL]...", help="Cells or stages; the whole study by default.")
    ] = None,
    root: Root = DEFAULT_ROOT,
    sets: Sets = None,
    undo: Annotated[bool, typer.Option("--undo", help="Make them plain model folders again.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Estimate what it would save, and change nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Store fine-tuned models losslessly as their difference to the model that they were made from.

    Every stage reads them as before. A base is not dropped as long as a change to it is there. Workers may be running.

    Example: `tidemark compact configs/studies/quickstart.yaml tuned`
    """
    opened = open_study(study, root, sets)
    check_root(opened.root)
    chosen = list(_chosen(opened, cells))
    folders = [folder(opened.root, cell) for cell in chosen]
    before = _bytes(folders)
    with _scratch(opened.root) as scratch:
        reading = Reading(opened.root)
        lines = [_line(opened.root, cell, undo, dry_run, scratch, reading) for cell in chosen]
    after = before - sum(line.before - line.after for line in lines) if dry_run else _bytes(folders)
    if as_json:
        print_json({"before": before, "after": after, "artifacts": [line.as_json() for line in lines]})
    else:
        _print(lines, before, after, dry_run)
    if any(line.failed for line in lines):
        stop("what is listed in red was left as it was", FAILED)


def _chosen(opened: Opened, names: Sequence[str] | None) -> Iterator[Cell]:
    """Committed artifacts that nothing drops: what can be made again from upstream is a base, or goes."""
    named = [c for name in names for c in find_cells(opened, name)] if names else opened.cells
    for cell in {cell.fingerprint: cell for cell in named}.values():
        place = folder(opened.root, cell)
        if cell.job != FOLDER and not is_transient(cell.job) and place.is_dir() and not record.is_dropped(place):
            yield cell


def _line(root: Path, cell: Cell, undo: bool, dry_run: bool, scratch: Path, reading: "Reading") -> Line:
    place = folder(root, cell)
    size = _bytes([place])
    line = Line(cell=cell, before=size, after=size)
    try:
        (_undo if undo else _compact)(root, place, line, dry_run, scratch, lambda: reading(cell.fingerprint))
    except ValueError as error:
        line.failed, line.remark = True, str(error)
    if not dry_run:
        line.after = _bytes([place])
    return line


Is = Callable[[], bool]


def _compact(root: Path, place: Path, line: Line, dry_run: bool, scratch: Path, is_read: Is) -> None:
    told = record.read(place)
    if "whole" in told:
        line.base = _base_of(line.cell, place)
        done = dry_run or compaction.free(place, is_read)
    elif bases.is_change(place) and not compaction.is_compacted(place):
        line.remark = "it is stored as a change already"
        return
    else:
        inputs = {name: _artifact(root, above) for name, above in line.cell.inputs.items()}
        form = compaction.survey(place, {name: found for name, found in inputs.items() if found}, scratch)
        if form.base is None:
            gone = [line.cell.inputs[name].name for name, found in inputs.items() if found is None]
            line.remark = form.reason + (f" ({', '.join(gone)} was dropped)" if gone and form.before else "")
            return
        line.base = _name(line.cell, form.base.fingerprint)
        line.after = line.before - form.before + form.after
        done = dry_run or compaction.compact(root, place, form.base, is_read)
    if not done:
        line.remark = "a stage that runs reads its plain files: they go when this is run again"


def _undo(root: Path, place: Path, line: Line, dry_run: bool, scratch: Path, is_read: Is) -> None:
    told = record.read(place)
    if not compaction.is_touched(place, told):
        line.remark = "it is plain"
    elif dry_run:
        line.after += sum(told["whole"][name]["size"] for name in compaction.distinct(list(told["whole"]), told))
        line.after -= sum(e["size"] for name, e in told["files"].items() if name.endswith(record.SUFFIX))
    elif not compaction.undo(root, place, is_read):
        line.remark = "a stage that runs reads its differences: they go when this is run again"


def _artifact(root: Path, cell: Cell) -> Artifact | None:
    """An input that is there."""
    place = folder(root, cell)
    if not place.is_dir() or record.is_dropped(place):
        return None
    return Artifact(path=record.payload(place, record.read(place)), fingerprint=cell.fingerprint)


def _base_of(cell: Cell, place: Path) -> str:
    return _name(cell, bases.words(place)["fingerprint"])


def _name(cell: Cell, fingerprint: str) -> str:
    return next((c.name for c in cell.inputs.values() if c.fingerprint == fingerprint), fingerprint[:12])


class Reading:
    """Whether a stage that runs now, of any study, is made from an artifact, directly or not."""

    def __init__(self, root: Path) -> None:
        self.root, self.queue = root, Queue(root)
        self.cells: dict[tuple[str, int], list[Cell]] = {}

    def __call__(self, fingerprint: str) -> bool:
        for path in (self.root / "submissions").glob("*"):
            for number in submissions.active(self.root, path.name):
                key = (path.name, number)
                try:
                    self.cells[key] = self.cells.get(key) or submissions.cells(self.root, *key)
                except ValueError:  # a folder that it points to is gone, say: what it reads is unknown
                    return True
                states = survey(self.root, path.name, self.cells[key], self.queue.alive)
                running = (cell for cell in self.cells[key] if states[cell.fingerprint].state == "running")
                if any(fingerprint in _upstream(cell) for cell in running):
                    return True
        return False


def _upstream(cell: Cell) -> set[str]:
    found = set()
    waiting = list(cell.inputs.values())
    while waiting:
        above = waiting.pop()
        if above.fingerprint not in found:
            found.add(above.fingerprint)
            waiting += above.inputs.values()
    return found


@contextmanager
def _scratch(root: Path) -> Iterator[Path]:
    """Where bases are restored that are stored as a change themselves."""
    scratch = root / "work" / f".trash-{uuid.uuid4().hex}"  # `clean` removes it, should this be killed
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _bytes(folders: Iterable[Path]) -> int:
    """Of all files in them; what has two names counts once."""
    files = [file.lstat() for path in folders for file in path.rglob("*") if not file.is_dir()]
    return sum({(told.st_dev, told.st_ino): told.st_size for told in files}.values())


def _print(lines: Sequence[Line], before: int, after: int, dry_run: bool) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("artifact")
    for name in ("before", "after"):
        table.add_column(name, justify="right")
    table.add_column("a change to")
    table.add_column("", style="dim")
    for line in lines:
        if line.failed:
            err.print(f"[red]{escape(line.cell.name)}[/]: {escape(line.remark)}")
        elif line.base or line.before != line.after:
            sizes = f"{line.before / 1e6:,.1f} MB", f"{line.after / 1e6:,.1f} MB"
            table.add_row(escape(line.cell.name), *sizes, escape(line.base), escape(line.remark))
    if table.row_count:
        out.print(table)
    rest = [line for line in lines if not line.failed and not line.base and line.before == line.after]
    for remark in dict.fromkeys(line.remark for line in rest):
        names = [line.cell.name for line in rest if line.remark == remark]
        some = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        out.print(f"[dim]{escape(f'as they were: {some}: {remark}')}[/]")
    words = "would become" if dry_run else "became"
    share = f" ({after / before:.0%})" if before else ""
    out.print(f"{before / 1e6:,.1f} MB in {len(lines)} artifacts {words} {after / 1e6:,.1f} MB{share}")
