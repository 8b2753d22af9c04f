"""The commands that need a network: which revisions a model has, what a study's names stand for, fetching it all."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

import jobs
from slurm import profiles, quota
from slurm import status as status_module
from slurm import submissions
from slurm.terminal import (
    DEFAULT_ROOT,
    FAILED,
    LOCAL,
    RUNNING,
    AsJson,
    Opened,
    Root,
    Sets,
    StudyPath,
    err,
    open_study,
    out,
    print_json,
    stop,
)
from toolkit import lock as lock_module
from toolkit import plan as plan_module
from toolkit import study_file
from toolkit.study import Cell, Study, StudyError

GAPS = 12  # ranges of missing steps that are printed


def revisions(
    model: Annotated[
        str, typer.Argument(help="A model's short name, `olmo-1b`, or a repository of the Hub, ORG/NAME.")
    ],
    root: Root = DEFAULT_ROOT,
    originals: Annotated[
        str, typer.Option(help="Also unsharded originals: `published`, or a list of them (CSV; a file or URL).")
    ] = "",
    pattern: Annotated[
        str, typer.Option(help="How branches are named: a regular expression with the group `step`; else the family's.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """The checkpoints of a model that are published, in the order of training, and the steps that are missing.

    Example: `tidemark revisions olmo-1b --originals published`
    """
    from toolkit import families
    from toolkit.checkpoints import pin, selection
    from toolkit.checkpoints.revisions import missing
    from toolkit.checkpoints.web import of_root

    found = families.find(model)
    if pattern:
        selection.check_pattern(pattern)
        found = replace(found, pattern=pattern)
    lists = True if originals == "published" else originals
    known, others, refs = pin.revisions(of_root(root.expanduser().absolute()), found, lists)
    gone = missing(found, known)
    if as_json:
        rows = [{**vars(r), "commit": refs.get(r.branch, "")} for r in known]
        return print_json({"repo": found.repo, "revisions": rows, "missing": gone, "other_branches": others})
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("stage", "ingredient", "step", "tokens"):
        table.add_column(name, justify="right")
    table.add_column("branch")
    shared = os.path.commonprefix([r.url for r in known if r.url]).rpartition("/")[0] + "/"
    if lists:
        table.add_column("original")
    for r in known:
        tokens = "·" if r.tokens is None else f"{r.tokens / 1e9:,.1f}B"
        where = [r.branch or "·"] + ([r.url.removeprefix(shared) or "·"] if lists else [])
        run = [str(r.stage), r.ingredient or "·", str(r.step)] if r.step is not None else ["·", "·", "·"]
        table.add_row(*run, tokens, *map(escape, where))
    out.print(table)
    out.print(f"{len(known)} revisions of {found.repo}; {_gaps(gone, [r.step for r in known if r.step is not None])}")
    if lists:
        out.print(f"[dim]originals are below {escape(shared)}[/]")
    if others:
        out.print(f"[dim]{len(others)} branches are none: {escape(', '.join(others[:8]))}[/]")


def _gaps(gone: Sequence[int], there: Sequence[int]) -> str:
    """Missing steps as ranges that no step which is there interrupts."""
    absent = set(gone)
    runs = groupby(sorted({*gone, *there}), key=absent.__contains__)
    ranges = [list(steps) for missing, steps in runs if missing]
    shown = [f"{r[0]}" if len(r) == 1 else f"{r[0]}-{r[-1]} ({len(r)})" for r in ranges]
    more = f" and {len(shown) - GAPS} more ranges" if len(shown) > GAPS else ""
    return f"{len(gone)} steps are missing: {', '.join(shown[:GAPS])}{more}" if gone else "no step is missing"


def lock(
    study: StudyPath,
    root: Root = DEFAULT_ROOT,
    sets: Sets = None,
    update: Annotated[
        bool, typer.Option("--update", help="Look everything up anew, also what the lock has already.")
    ] = False,
) -> None:
    """Look up what a study's branches and selections stand for, check it, and write the commits into STUDY.lock.

    The lock belongs beside the study, under version control: with it the study is the same without a network, next year
    and for others.

    Example: `tidemark lock configs/studies/olmo2-1b.yaml`
    """
    words = study_file.load(study, sets or (), locked=False)
    known_before = lock_module.read(study)
    known = {} if update else known_before
    entries: dict[str, dict[str, Any]] = {}
    for name, pin in _pinned(words):
        asked = lock_module.asked(words.stages[name].words())
        if name in known and known[name]["asked"] == asked:
            entries[name] = known[name]
            out.print(f"{name}: as it was locked")
            continue
        try:
            found, told = pin(root.expanduser().absolute(), asked, study.parent)
        except ValueError as error:
            raise StudyError(str(error), ("stages", name), words.origins) from error
        entries[name] = {"asked": asked, **found}
        before = known_before.get(name)
        if before is not None and before["asked"] == asked and (moved := lock_module.moved(before, entries[name])):
            out.print(f"{name}: moved since it was locked: {escape(', '.join(moved))}")
        for line in told:
            out.print(f"{name}: {escape(line)}")
    if not entries:
        raise ValueError(f"{study} fetches nothing: no stage of it is a download")
    out.print(f"lock: {escape(str(lock_module.write(study, entries)))}")


def _pinned(study: Study) -> Iterator[tuple[str, Any]]:
    """The stages whose job has names to look up, and how it does."""
    for name, stage in study.stages.items():
        try:
            pin = getattr(jobs.load(stage.job), "pin", None) if stage.job else None
        except ValueError as error:
            raise StudyError(str(error), ("stages", name, "job"), study.origins) from error
        if pin is not None:
            yield name, pin


def prefetch(
    study: StudyPath,
    root: Root = DEFAULT_ROOT,
    sets: Sets = None,
    workers: Annotated[int, typer.Option(min=1, help="How many of them are fetched side by side.")] = 4,
) -> None:
    """Fetch every model and data set that a study names, on a machine with a network; compute nodes need none then.

    Example: `tidemark prefetch configs/studies/olmo2-1b.yaml`
    """
    from slurm import launch as launch_module

    opened = open_study(study, root, sets)
    stages = {name: opened.study.stages[name] for name, _ in _pinned(opened.study)}
    cells = [cell for cell in opened.cells if cell.stage in stages]
    # Of the whole study: what was dropped is fetched again where something that is not done reads it.
    states = plan_module.survey(opened.root, opened.study.name, opened.cells) if opened.root.is_dir() else {}
    waiting = [c for c in cells if c.fingerprint not in states or states[c.fingerprint].state != "done"]
    if not waiting:
        out.print(f"nothing to fetch: all {len(cells)} models and data sets of {opened.study.name} are there")
        return
    _check(opened.root, waiting)
    # A study of its own, so that the launches of the whole one stay what they are.
    part = Opened(
        study=replace(opened.study, name=opened.study.name + submissions.PREFETCH, stages=stages),
        root=opened.root,
        cells=cells,
    )
    try:
        _, profile = profiles.load(LOCAL)
        options = {"retry": {}, "wanted": [cell.fingerprint for cell in waiting]}
        started = launch_module.launch_local(part.root, part.study, part.cells, workers, profile, options)
    except launch_module.AlreadyRunning as error:
        stop(str(error), RUNNING)
    teller = status_module.Teller()

    def tell() -> None:
        for line in teller.news(_read(part, opened)):
            print(line, flush=True)

    try:
        launch_module.follow(started, tell)
    except KeyboardInterrupt:
        err.print("stopping: what was received is kept; prefetch again to go on")
        started.stop()
        raise
    _finish(part, _read(part, opened), started.complaints())


def _read(part: Opened, opened: Opened) -> status_module.Status:
    """How far the downloads are. What was dropped is missing where something in the whole study reads it."""
    found = status_module.read(part.root, part.study.name, opened.cells)
    states = {cell.fingerprint: found.states[cell.fingerprint] for cell in part.cells}
    return replace(found, cells=part.cells, states=states)


def _check(root: Path, cells: Sequence[Cell]) -> None:
    """Before bytes move: what is there twice, and whether there is room for what is missing."""
    from toolkit.checkpoints import preflight
    from toolkit.checkpoints.web import of_root
    from toolkit.manifest.files import check_root

    check_root(root)
    by_print = {cell.fingerprint: cell for cell in cells}
    fields = {print_: {**cell.spec, "files": tuple(cell.spec.get("files", ()))} for print_, cell in by_print.items()}
    listings = preflight.list_all(of_root(root), fields)
    for stage in dict.fromkeys(cell.stage for cell in cells):
        named = {",".join(map(str, c.coords.values())): c.fingerprint for c in by_print.values() if c.stage == stage}
        preflight.refuse_duplicates({name: listings[print_] for name, print_ in named.items()})
    there = sum(_size(root / "work" / print_[:12] / "state") for print_ in by_print)
    size = sum(file.size for files in listings.values() for file in files)
    inodes = sum(len(files) + 10 for files in listings.values())
    preflight.check_room(root, size - there, inodes)
    try:
        quota.check(root, size - there, inodes)
    except TimeoutError as error:
        err.print(f"[yellow]the quota is unknown: {escape(str(error))}[/]")
    here = f", of which {preflight.amount(there)} are there" if there else ""
    out.print(f"{len(by_print)} to fetch: {preflight.amount(size)}{here}")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _finish(part: Opened, found: status_module.Status, complaints: Sequence[str]) -> None:
    for complaint in complaints:
        err.print(f"[red]{escape(complaint)}[/]")
    for cell in found.in_state("failed"):
        state = found.states[cell.fingerprint]
        err.print(f"[red]{escape(cell.name)}: {state.reason}: {escape(state.message)}[/]")
    done = len(found.in_state("done"))
    out.print(f"{done} of {len(part.cells)} models and data sets are there")
    if done < len(part.cells):
        stop("prefetch again: what was received is kept", FAILED)
