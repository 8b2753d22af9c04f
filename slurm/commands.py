"""The commands that run a study and follow it: plan, launch, status, why, logs."""

import gc
import os
import sys
import time
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from slurm import forecast, outline, profiles
from slurm import status as status_module
from slurm import submissions
from slurm.terminal import (
    DEFAULT_ROOT,
    FAILED,
    LOCAL,
    RUNNING,
    AsJson,
    CellName,
    ClusterName,
    Opened,
    Root,
    Sets,
    StudyPath,
    err,
    find_cell,
    open_study,
    out,
    print_json,
    stop,
    write_out,
)
from toolkit import lookup
from toolkit import plan as plan_module
from toolkit import study_file
from toolkit.failures import POLICY, Failure
from toolkit.manifest import index

MOST_CAUSES = 20  # lines of `plan` that say how new and drifted cells differ


def plan(
    study: StudyPath,
    root: Root = DEFAULT_ROOT,
    sets: Sets = None,
    as_json: AsJson = False,
    graph: Annotated[Path | None, typer.Option(help="Write the stages and what joins them as an SVG file.")] = None,
    cost: Annotated[bool, typer.Option("--cost", help="Show what the rest will cost on --cluster instead.")] = False,
    cluster: Annotated[str | None, typer.Option(help="For --cost: a profile, as `launch` takes it.")] = None,
) -> None:
    """What a launch would do: per stage the cells that are cached, new, running, failed, blocked; why new ones are new.

    Example: `tidemark plan configs/studies/quickstart.yaml --set tuned.lr=2e-3`
    """
    from toolkit import provenance
    from toolkit.analysis.suspects import suspects_of
    from toolkit.pairing import unpaired

    if cost != (cluster is not None):
        raise ValueError("--cost and --cluster NAME go together: what is left is priced by that cluster's shapes")
    opened = open_study(study, root, sets)
    states = plan_module.survey(opened.root, opened.study.name, opened.cells)
    records, problems = index.records(opened.root)
    stages = plan_module.plan(opened.cells, states, records, provenance.identity())
    suspects = suspects_of(opened.cells, records)
    loose = unpaired(opened.cells)
    if graph is not None:
        from toolkit.analysis.graph import dag_svg

        write_out(dag_svg(stages), graph)
    if cluster is not None:
        forecast.show(opened, cluster, states, as_json)
    elif as_json:
        print_json(
            [
                {**_plain(stage), "suspects": suspects.get(stage.stage, []), "unpaired": loose.get(stage.stage, [])}
                for stage in stages
            ]
        )
    else:
        _print_plan(stages)
        for suspect in chain.from_iterable(suspects.values()):
            err.print(f"suspect checkpoint: {escape(suspect)}")
        for line in chain.from_iterable(loose.values()):
            err.print(f"not paired: {escape(line)}")
    for problem in problems:
        err.print(f"[red]damaged:[/] {escape(problem)}")


def _plain(stage: plan_module.StagePlan) -> dict[str, Any]:
    return {**vars(stage), "states": dict(stage.states), "differences": dict(stage.differences)}


def _print_plan(stages: list[plan_module.StagePlan]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    columns = ("cells", "new", "cached", "drifted", "running", "failed", "blocked")
    table.add_column("stage")
    table.add_column("job")
    for name in columns:
        table.add_column(name, justify="right")
    table.add_column("axes")
    for stage in stages:
        done, states = stage.states["done"], stage.states
        numbers = (states.total(), states["never-run"], done - stage.drifted, stage.drifted)
        more = (states["running"], states["failed"], states["blocked"])
        shown = [str(n) if n else "·" for n in (*numbers, *more)]
        table.add_row(stage.stage, stage.job, *shown, ", ".join(stage.axes))
    out.print(table)
    causes: dict[str, Counter[str]] = {}
    for stage in stages:
        for line, count in stage.differences.items():
            causes.setdefault(line, Counter())[stage.stage] += count
    for line, where in sorted(causes.items(), key=lambda cause: -cause[1].total())[:MOST_CAUSES]:
        out.print(f"  {escape(line)}  [dim]{escape(', '.join(where))} ({where.total()} cells)[/]")
    if len(causes) > MOST_CAUSES:
        out.print(f"  [dim]and {len(causes) - MOST_CAUSES} more differences (--json lists all)[/]")


def launch(
    study: StudyPath,
    root: Root = DEFAULT_ROOT,
    sets: Sets = None,
    cluster: ClusterName = LOCAL,
    workers: Annotated[
        int | None, typer.Option(min=1, help="At most so many workers of each shape; as the profile says by default.")
    ] = None,
    retry: Annotated[
        list[str] | None,
        typer.Option(metavar="TYPE=N", help="Try a cell N more times after a failure of this type; may be repeated."),
    ] = None,
    disk_budget: Annotated[
        str,
        typer.Option(metavar="SIZE", help="What downloads and conversions may take, as 45G; else as the profile says."),
    ] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the batch files, and do nothing.")] = False,
) -> None:
    """Run what is missing: here, or on a cluster, whose workers go on when you log out. Launching again resumes.

    Example: `tidemark launch configs/studies/quickstart.yaml --cluster slurm-generic`
    """
    opened = open_study(study, root, sets)
    profile, words = profiles.load(cluster)
    if workers is not None:
        words = {**words, "shapes": {name: {**shape, "workers": workers} for name, shape in words["shapes"].items()}}
        profile = profiles.read(words)
    if disk_budget:
        words = {**words, "disk_budget": {**(words.get("disk_budget") or {}), "bytes": disk_budget}}
        profile = profiles.read(words)
    options = {"retry": _retries(retry or [])}
    if profile.scheduler == "local":
        if dry_run:
            raise ValueError(f"--dry-run prints batch files, and the cluster {cluster!r} has none: name another")
        _launch_here(opened, profile, words, options)
    else:
        from slurm import arrays

        place = arrays.Cluster(name=cluster, profile=profile, words=words)
        if dry_run:
            for name, text in arrays.batch_files(opened.root, opened.study, opened.cells, place).items():
                typer.echo(f"# ---- {name}\n{text}")
        else:
            _launch_there(opened, place, options)


def _retries(words: list[str]) -> dict[str, int]:
    found = {}
    for word in words:
        reason, equals, count = word.partition("=")
        if reason not in list(Failure):
            raise ValueError(f"--retry {word}: {lookup.unknown('type', reason, list(Failure))}")
        if not equals or not count.isdigit():
            raise ValueError(f"--retry {word}: needs TYPE=N with a whole number, such as {reason}=3")
        found[reason] = int(count)
    return found


def _launch_here(opened: Opened, profile: profiles.Profile, words: Any, options: dict[str, Any]) -> None:
    from slurm import launch as launch_module

    if _all_done(opened):
        return
    (shape,) = profile.shapes.values()
    try:
        started = launch_module.launch_local(opened.root, opened.study, opened.cells, shape.workers, words, options)
    except launch_module.AlreadyRunning as error:
        stop(str(error), RUNNING)
    try:
        _follow(opened, launch_module.follow, started)
    except KeyboardInterrupt:
        err.print("stopping: training saves its state, what cannot save is lost; launch again to resume")
        started.stop()
        raise
    _finish(opened, started.complaints())


def _all_done(opened: Opened) -> bool:
    states = plan_module.survey(opened.root, opened.study.name, opened.cells) if opened.root.is_dir() else {}
    if not states or any(state.state != "done" for state in states.values()):
        return False
    submissions.remember(opened.root, opened.study)
    out.print(f"nothing to do: all {len(opened.cells)} cells of {opened.study.name} are done")
    return True


def _launch_there(opened: Opened, place: Any, options: dict[str, Any]) -> None:
    from slurm import arrays
    from slurm.launch import AlreadyRunning

    if _all_done(opened):
        return
    try:
        done = arrays.launch(opened.root, opened.study, opened.cells, place, options)
    except AlreadyRunning as error:
        stop(str(error), RUNNING)
    for remark in done.said:
        out.print(escape(remark))
    for name, array in done.arrays.items():
        out.print(f"job {array['job']}: {array['workers']} workers of shape {array['shape']}  [dim]{escape(name)}[/]")
    if done.number is None:
        out.print(f"nothing to submit: {done.running} workers run and {done.waiting} wait in the queue")
    if done.number is not None and done.login:
        out.print(f"{done.login} cells need the internet, which no shape has: they run here, stay until they are done")
        made = arrays.work_here(opened.root, opened.study.name, done.number)
        out.print(f"{made} of them are done; `tidemark launch` again for the others" if made < done.login else "done")
    out.print("`tidemark status STUDY --watch` shows how far it is; you may log out")


def _follow(opened: Opened, follow: Any, started: Any) -> None:
    gc.enable()  # `main` turned it off; this may go on for days

    def read() -> status_module.Status:
        return status_module.read(opened.root, opened.study.name, opened.cells)

    if out.is_terminal:
        with Live(console=out, auto_refresh=False) as live:
            follow(started, lambda: live.update(status_module.render(read()), refresh=True))
    else:
        teller = status_module.Teller()

        def tell() -> None:
            for line in teller.news(read()):
                print(line, flush=True)

        follow(started, tell)


def _finish(opened: Opened, complaints: list[str]) -> None:
    """Say what was reached, and exit accordingly."""
    status = status_module.read(opened.root, opened.study.name, opened.cells)
    for complaint in complaints:
        err.print(f"[red]{escape(complaint)}[/]")
    counts = {state: len(status.in_state(state)) for state in plan_module.STATES}
    out.print(", ".join(f"{count} {state}" for state, count in counts.items() if count))
    if counts["failed"]:
        first = status.in_state("failed")[0].name
        stop(
            f"{counts['failed']} cells failed; `tidemark why STUDY {first!r}` tells why; launch again to retry", FAILED
        )
    if counts["done"] < sum(counts.values()):
        stop("the workers ended before the study was done; launch again to resume", FAILED)


def status(
    study: StudyPath,
    root: Root = DEFAULT_ROOT,
    sets: Sets = None,
    as_json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", help="Go on showing it, until Ctrl-C.")] = False,
) -> None:
    """How far a study is: cells per stage and state, what runs (step, tokens/s, ETA), what failed.

    Example: `tidemark status configs/studies/quickstart.yaml --watch`
    """
    if watch and not out.is_terminal:
        raise ValueError("--watch redraws a terminal, and this is none: use `tidemark status STUDY --json`")
    root = root.expanduser().absolute()
    words = study_file.load(study, sets or ())
    cells = outline.nodes(root, words)
    found = status_module.read(root, words.name, cells)
    if as_json:
        print_json(found.as_json())
    elif not watch:
        out.print(status_module.render(found))
    else:
        gc.enable()  # `main` turned it off; this may go on for days
        with Live(console=out, auto_refresh=False, screen=False) as live:
            while True:
                live.update(status_module.render(found), refresh=True)
                time.sleep(1)
                found = status_module.read(root, words.name, cells)


def why(study: StudyPath, cell: CellName, root: Root = DEFAULT_ROOT, sets: Sets = None) -> None:
    """Why a cell is in the state that it is in: the type of a failure, its message, the remedy, the end of its log.

    Example: `tidemark why configs/studies/quickstart.yaml 'tuned[step=100]'`
    """
    opened = open_study(study, root, sets)
    found = find_cell(opened, cell)
    status = status_module.read(opened.root, opened.study.name, opened.cells)
    state = status.states[found.fingerprint]
    out.print(f"[bold]{escape(found.name)}[/] is {state.state}  [dim]{found.job} {found.fingerprint[:12]}[/]")
    out.print(f"folder: {escape(str(plan_module.folder(opened.root, found)))}")
    if state.state == "failed":
        out.print(f"{state.reason} in attempt {state.attempt}: {escape(state.message)}")
        out.print(f"remedy: {POLICY[Failure(state.reason)].remedy}")
    elif state.state == "blocked":
        out.print(escape(state.message))
    elif state.state == "running":
        job = status.places.job(state.job) if status.places else None
        where = f"job {job.id} on {job.nodes}, for {job.elapsed}" if job else f"worker {state.worker}"
        out.print(escape(f"attempt {state.attempt} runs in {where}"))
    elif state.state == "never-run":
        waiting = [c.name for c in found.inputs.values() if status.states[c.fingerprint].state != "done"]
        words = (
            f"waits for {', '.join(waiting)}" if waiting else "nothing is in its way: a worker, or a launch, runs it"
        )
        out.print(escape(words))
        if status.places is not None:
            out.print(*status_module.workers(status.places), sep="\n")
    path = status_module.log_path(opened.root, found)
    if path is not None:
        out.print(f"[dim]the end of {escape(str(path))}:[/]")
        out.print(escape("\n".join(path.read_text(errors="replace").splitlines()[-15:])))


def logs(
    study: StudyPath,
    cell: CellName,
    root: Root = DEFAULT_ROOT,
    sets: Sets = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on printing, until Ctrl-C.")] = False,
) -> None:
    """What a cell's latest attempt printed.

    Example: `tidemark logs configs/studies/quickstart.yaml pretrained -f`
    """
    opened = open_study(study, root, sets)
    found = find_cell(opened, cell)
    shown, attempt = 0, 0
    while True:
        path = status_module.log_path(opened.root, found)
        if path is None and not follow:
            raise ValueError(f"{found.name} has no log: it was never run, or it is an adopted folder")
        if path is not None:
            with path.open(errors="replace") as file:
                now = os.fstat(file.fileno()).st_ino  # a commit keeps the file, another attempt has its own
                file.seek(shown if now == attempt else 0)
                sys.stdout.write(file.read())
                sys.stdout.flush()
                shown, attempt = file.tell(), now
        if not follow:
            return
        time.sleep(0.5)
