"""The commands that look after a root: verify, adopt, clean."""

import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

import jobs
from slurm import submissions
from slurm.terminal import (
    DEFAULT_ROOT,
    FAILED,
    RUNNING,
    AsJson,
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
from toolkit import lookup, provenance
from toolkit.checkpoints.compact import WORK, is_at_work
from toolkit.checkpoints.whole import base_of
from toolkit.expand import choose, slug
from toolkit.manifest import adopt as adoption
from toolkit.manifest import dropping, index, record
from toolkit.manifest.files import check_root, discard
from toolkit.plan import DONE, folder
from toolkit.spec import build
from toolkit.stage import Artifact, Context
from toolkit.study import Cell, Stage, Study, axes

if TYPE_CHECKING:
    import pyarrow as pa


def verify(
    study: Annotated[Path | None, typer.Argument(metavar="[STUDY]", help="Only this study's artifacts.")] = None,
    root: Root = DEFAULT_ROOT,
    sets: Sets = None,
    quick: Annotated[bool, typer.Option("--quick", help="Compare sizes only; do not read the files.")] = False,
    as_json: AsJson = False,
) -> None:
    """Hold every file of every artifact against its record: missing, extra, cut or changed files are listed.

    Example: `tidemark verify configs/studies/quickstart.yaml`
    """
    root = root.expanduser().absolute()
    folders = sorted(_artifacts(root))
    if study is not None:
        wanted = {folder(root, cell) for cell in open_study(study, root, sets).cells}
        folders = [path for path in folders if path in wanted]
    checked = {str(path.relative_to(root)): [*record.verify(path, deep=not quick), *_lacks(path)] for path in folders}
    wrong = {name: problems for name, problems in checked.items() if problems}
    dropped = sum(record.is_dropped(path) for path in folders)
    if as_json:
        print_json({"artifacts": len(checked), "dropped": dropped, "damaged": wrong})
    else:
        for name, problems in wrong.items():
            for problem in problems:
                err.print(f"[red]{escape(name)}[/]: {escape(problem)}")
        out.print(f"{len(checked)} artifacts, {len(wrong)} damaged" + (f", {dropped} dropped" if dropped else ""))
    if wrong:
        stop("move each damaged folder away and launch again to make it anew", FAILED)


def _lacks(folder: Path) -> list[str]:
    """An artifact that is stored as a change is none without its base."""
    try:
        base_of(folder)
    except ValueError as error:
        return [str(error)]
    return []


def _artifacts(root: Path) -> Iterator[Path]:
    for job, names in index.committed(root).items():
        for name in names.values():
            yield root / "artifacts" / job / name


def keep(
    study: StudyPath,
    cells: Annotated[list[str], typer.Argument(metavar="CELL...", help="Cells, or whole stages.")],
    root: Root = DEFAULT_ROOT,
    sets: Sets = None,
    no: Annotated[bool, typer.Option("--no", help="Allow that they are dropped again.")] = False,
) -> None:
    """Pin what a disk budget would drop (`launch --disk-budget`): it stays, and counts.

    Example: `tidemark keep configs/studies/olmo2-1b.yaml 'published[step=main]'`
    """
    opened = open_study(study, root, sets)
    check_root(opened.root)
    named = {c.fingerprint: c for name in cells for c in find_cells(opened, name)}
    for print_, cell in named.items():
        (dropping.unpin if no else dropping.pin)(opened.root, print_)
        place = folder(opened.root, cell)
        there = (
            "dropped: made again when it is needed" if record.is_dropped(place) else "there" if place.is_dir() else ""
        )
        words = "may be dropped" if no else "is kept"
        out.print(f"{escape(cell.name)} {words}  [dim]{there or 'not made yet'}[/]")


def adopt(
    path: Annotated[Path, typer.Argument(help="A file or folder of weights, data or results; it stays where it is.")],
    root: Root = DEFAULT_ROOT,
    label: Annotated[str, typer.Option(help="What its artifact is called; the name of PATH by default.")] = "",
    published: Annotated[
        str,
        typer.Option(metavar="SOURCE", help="PATH holds results that SOURCE published: read them into rows as well."),
    ] = "",
) -> None:
    """Make existing files an artifact, without copying them: their digests are recorded, so that a change is seen.

    A study uses them as `{path: PATH}`; what it points to is adopted by `launch` as well. Published results come into a
    study's table by a stage `{job: published, inputs: {tables: ...}, spec: {source: SOURCE}}`, which is then done.

    Example: `tidemark adopt ../models/OLMo-1B`
    """
    root = root.expanduser().absolute()
    check_root(root)
    if published:
        lookup.find("toolkit.analysis.published", published, "source")
    made = adoption.adopt(root, path=path, label=slug(label or path.resolve().name))
    out.print(f"{escape(str(made))}  [dim]{record.read(made)['fingerprint']}[/]")
    if published:
        _print_published(*_read_published(root, published, path.resolve()))


def _print_published(made: Path, table: "pa.Table") -> None:
    from toolkit.analysis.guards import findings

    found, measured = findings(table), table.num_rows - table["value"].null_count
    out.print(f"{escape(str(made))}  [dim]{record.read(made)['fingerprint']}[/]")
    out.print(f"{measured} numbers, {table.num_rows - measured} places that were not run, {len(found)} findings:")
    for finding in found:
        err.print(f"[yellow]{escape(finding)}[/]")


def _read_published(root: Path, source: str, path: Path) -> tuple[Path, "pa.Table"]:
    """Run the job `published` on an adopted PATH, here and now; its folder, and its rows as a long table.

    The artifact is the one that a study's stage of this job would make: its cell is done from then on.

    Raises:
        ValueError: an unknown source, or files that are not what it published.
    """
    from toolkit.analysis.table import measure

    stage = Stage(job="published", spec={"source": source}, inputs={"tables": "tables"})
    study = Study(name=f"published-{source}", stages={"tables": Stage(path=str(path)), source: stage})
    (cell,) = [c for c in submissions.cells_of(root, study) if c.job == "published"]
    if record.find(root, cell.job, cell.label, cell.fingerprint) is None:
        _run_here(root, cell, path)
    made = folder(root, cell)
    return made, measure([cell], {cell.fingerprint: DONE}, {cell.fingerprint: made}, axes([cell]))


def _run_here(root: Path, cell: Cell, path: Path) -> None:
    """A cell that takes no time needs no worker; killed on the way, it leaves a folder that `clean` finds."""
    work = root / "work" / f"adopt-{uuid.uuid4().hex}"
    produced = work / "out"
    produced.mkdir(parents=True)
    chosen, started = choose(jobs.load(cell.job), cell.spec), time.time()
    tables = {name: Artifact(path=path, fingerprint=above.fingerprint) for name, above in cell.inputs.items()}
    spec, context = build(chosen.Spec, cell.spec), Context(state=work)
    try:
        metrics = jobs.load(cell.job).run(spec, chosen.Inputs(**tables), produced, context)
        told = {
            "spec": cell.spec,
            "inputs": {name: above.fingerprint for name, above in cell.inputs.items()},
            "metrics": metrics,
            "provenance": {
                "version": cell.version,
                "stage": cell.stage,
                "coords": cell.coords,
                "identity": provenance.identity(),
                "machine": provenance.machine(),
                "attempt": 1,
                "started": round(started, 3),
                "seconds": round(time.time() - started, 3),
            },
        }
        record.commit(
            root, job=cell.job, label=cell.label, fingerprint=cell.fingerprint, out=produced, record=told
        )  # fmt: skip
    finally:
        discard(work)


def clean(
    root: Root = DEFAULT_ROOT,
    unused: Annotated[
        bool, typer.Option("--unused", help="Also artifacts that no launched study names any more.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Free it without asking.")] = False,
) -> None:
    """Free what nothing needs: it lists folders and sizes first and asks. What a kept record reads is never touched.

    Example: `tidemark clean --unused`
    """
    root = root.expanduser().absolute()
    for study in _studies(root):
        if submissions.active(root, study):
            stop(f"study {study!r} is being run: clean once it has ended", RUNNING)
    candidates = [*_leftovers(root), *(_unused(root) if unused else ())]
    sizes = [_size(path) for path in candidates]
    for path, size in zip(candidates, sizes, strict=True):
        out.print(f"{size / 1e6:10,.1f} MB  {escape(str(path.relative_to(root)))}")
    out.print(f"{sum(sizes) / 1e6:10,.1f} MB in {len(candidates)} folders")
    if candidates and (yes or typer.confirm("free it?")):
        for path in candidates:
            discard(path)


def _studies(root: Path) -> list[str]:
    names = sorted(path.name for path in (root / "submissions").glob("*") if path.is_dir())
    return [name for name in names if submissions.numbers(root, name)]


def _leftovers(root: Path) -> list[Path]:
    """Work folders of cells that are committed, and folders that were being removed when the process died."""
    done = {short for names in index.committed(root).values() for short in names}
    work = [path for path in (root / "work").glob("*") if path.name in done or _is_scrap(path)]
    trash = [path for pattern in ("work/*/.trash-*", "artifacts/*/.trash-*") for path in root.glob(pattern)]
    return sorted([*work, *(path for path in trash if path.parent not in work)])


def _is_scrap(work: Path) -> bool:
    """What a command that was killed left of work of its own."""
    return work.name.startswith((".trash-", "adopt-")) or (work.name.startswith(WORK) and not is_at_work(work))


def _unused(root: Path) -> list[Path]:
    """Artifacts that are in no study's latest launch and that no artifact which is kept was made from."""
    records, problems = index.records(root)
    if problems:
        raise ValueError(f"a record cannot be read, so what it needs is unknown: {problems[0]}")
    named = {
        cell.fingerprint
        for study in _studies(root)
        for cell in submissions.cells(root, study, submissions.numbers(root, study)[-1])
    }
    kept: set[str] = set()
    waiting = [p for p in records if p in named]
    while waiting:
        fingerprint = waiting.pop()
        if fingerprint in records and fingerprint not in kept:
            kept.add(fingerprint)
            waiting += json.loads(records[fingerprint].inputs).values()
    return sorted(root / "artifacts" / made.folder for p, made in records.items() if p not in kept)


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file() and not file.is_symlink())
