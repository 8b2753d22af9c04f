"""The commands that say what a study's numbers mean: compare, check."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from slurm.answers import AnyHarness, folders_of, measured
from slurm.terminal import (
    DEFAULT_ROOT,
    AsJson,
    Opened,
    Root,
    Sets,
    StudyPath,
    err,
    find_cell,
    open_study,
    out,
    print_json,
)
from toolkit import lookup
from toolkit.manifest import record
from toolkit.plan import CellState, folder, survey
from toolkit.study import Cell, axes

if TYPE_CHECKING:
    from toolkit.analysis.paired import Comparison


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One line of `compare`; `place` is what both cells share: `scores[step=100]`."""

    place: str
    first: str
    second: str
    task: str
    metric: str
    alone: int
    found: "Comparison"


def compare(
    study: StudyPath,
    first: Annotated[str, typer.Argument(metavar="A", help="A cell, or AXIS=VALUE[,AXIS=VALUE] for many.")],
    second: Annotated[str, typer.Argument(metavar="B", help="What it is compared with, in the same way.")],
    on: Annotated[list[str] | None, typer.Option(metavar="TASK", help="Only this task; may be repeated.")] = None,
    metric: Annotated[str, typer.Option(help="A metric of the items; right or wrong by default.")] = "",
    confidence: Annotated[float, typer.Option(help="Of the intervals.")] = 0.95,
    root: Root = DEFAULT_ROOT,
    sets: Sets = None,
    any_harness: AnyHarness = False,
    as_json: AsJson = False,
) -> None:
    """B against A, item by item: verdict, difference with interval, effect size, p-value (Holm over all lines).

    Right and wrong answers: McNemar's mid-p test. Other scores: the paired bootstrap. With AXIS=VALUE every cell of A
    is held against the cells of B that have the same other coordinates.

    Example: `tidemark compare STUDY model=checkpoint model=tuned --on piqa`
    """
    from toolkit.analysis.stats import holm

    opened = open_study(study, root, sets)
    states = survey(opened.root, opened.study.name, opened.cells)
    pairs = _pairs(opened, states, first, second)
    _check_tasks(opened, pairs, on or ())
    lines: list[Compared] = []
    for one, two in pairs:
        lines += _compare_cells(opened, one, two, on or (), metric, confidence, any_harness)
    if not lines:
        raise ValueError(
            f"no task of these cells has the metric {metric!r}: leave --metric out, or look into items.parquet"
        )
    adjusted = holm([line.found.p for line in lines])
    level = 1 - confidence
    rows = [
        {
            **{k: v for k, v in vars(line).items() if k != "found"},
            **{{"first": "first_score", "second": "second_score"}.get(k, k): v for k, v in asdict(line.found).items()},
            "p_holm": float(p),
            "verdict": line.found.verdict(level, float(p)),
        }
        for line, p in zip(lines, adjusted)
    ]
    if as_json:
        print_json(rows)
    else:
        _print_comparisons(first, second, rows)


def _print_comparisons(first: str, second: str, rows: Sequence[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("cells", "task"):
        table.add_column(name, no_wrap=True)
    for name in ("n", "A", "B", "B - A", "", "resolves", "only A", "only B", "effect", "p", "Holm"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("B is", no_wrap=True)
    for row in rows:
        numbers = [f"{row[name]:.3f}" for name in ("first_score", "second_score")]
        change = [f"{row['difference']:+.3f}", escape(f"[{row['low']:+.3f}, {row['high']:+.3f}]")]
        pairs = ["·" if row[name] is None else str(row[name]) for name in ("only_first", "only_second")]
        tests = [f"{row['effect']:+.2f}", f"{row['p']:.2g}", f"{row['p_holm']:.2g}"]
        resolves = f"{row['resolvable']:.3f}" if row["resolvable"] else "·"
        place = [escape(row["place"]), escape(row["task"]), str(row["n"])]
        table.add_row(*place, *numbers, *change, resolves, *pairs, *tests, row["verdict"])
    metrics = ", ".join(dict.fromkeys(row["metric"] for row in rows))
    tests_ = ", ".join(dict.fromkeys(row["test"] for row in rows))
    out.print(f"A: {escape(first)}  B: {escape(second)}  [dim]{metrics}; {tests_}[/]")
    # a terminal may be narrower: a table that wraps is read, one that is cut is not
    Console(highlight=False, width=max(out.width, 1000)).print(table)
    for row in rows:
        if row["alone"]:
            err.print(f"[yellow]{row['alone']} items of {escape(row['task'])} are in one cell only: left out[/]")


def _pairs(opened: Opened, states: dict[str, CellState], first: str, second: str) -> list[tuple[Cell, Cell]]:
    """Cells of A and B that agree on every axis that both have and neither side named."""
    sides = [_side(opened, states, words) for words in (first, second)]
    named = {axis for _, axes_ in sides for axis in axes_}
    found = []
    for one in sides[0][0]:
        for two in sides[1][0]:
            shared = [axis for axis in one.coords if axis in two.coords and axis not in named]
            alike = one.stage == two.stage or not named
            if one is not two and alike and all(one.coords[axis] == two.coords[axis] or not named for axis in shared):
                found.append((one, two))
    if not found:
        raise ValueError(
            f"no cell of {first!r} has the other coordinates of a cell of {second!r}, or both are one cell"
        )
    return found


def _side(opened: Opened, states: dict[str, CellState], words: str) -> tuple[list[Cell], set[str]]:
    """The evaluated cells that a person names, and the axes that were named."""
    if "=" not in words or "[" in words:
        cell = find_cell(opened, words)
        if states[cell.fingerprint].state != "done":
            raise ValueError(f"{cell.name} is {states[cell.fingerprint].state}: there is nothing to compare yet")
        return [cell], set()
    wanted = dict(word.split("=", 1) for word in words.split(","))
    for axis in wanted:
        if axis not in axes(opened.cells):
            raise ValueError(lookup.unknown("axis", axis, axes(opened.cells)))
    cells = [
        cell for cell in opened.cells
        if states[cell.fingerprint].state == "done" and (folder(opened.root, cell) / "items.parquet").is_file()
        and all(str(cell.coords.get(axis)) == value for axis, value in wanted.items())
    ]  # fmt: skip
    if not cells:
        raise ValueError(f"no evaluated cell with items has {words!r}: `tidemark status` shows what is done")
    return cells, set(wanted)


def _check_tasks(opened: Opened, pairs: Sequence[tuple[Cell, Cell]], on: Sequence[str]) -> None:
    """Of several stages each has tasks of its own: a task that was asked for must be one of any pair."""
    from toolkit.analysis.items import shared_tasks

    known = {task for pair in pairs for task in shared_tasks(*(folder(opened.root, cell) for cell in pair))}
    for task in on:
        if task not in known:
            raise ValueError(lookup.unknown("task", task, known))


def _compare_cells(
    opened: Opened, one: Cell, two: Cell, on: Sequence[str], metric: str, confidence: float, any_harness: bool
) -> list[Compared]:
    from toolkit.analysis import guards, items
    from toolkit.analysis.paired import compare as compare_scores
    from toolkit.analysis.rows import harness

    folders = [folder(opened.root, cell) for cell in (one, two)]
    words = [harness(record.read(path)) for path in folders]
    if words[0] != words[1] and not any_harness:
        raise ValueError(
            f"{one.name} was scored by {words[0]}, {two.name} by {words[1]}: numbers of two harnesses do not compare. "
            "Evaluate both with one version, or say --any-harness"
        )
    found = []
    for task, tables in items.parts([items.read_all(path) for path in folders]).items():
        if on and tables[0]["task"][0].as_py() not in on or metric and metric not in items.metrics(*tables):
            continue
        for warning in guards.single_class(tables[0]):
            err.print(f"[yellow]{escape(warning)}[/]")
        sides = items.pair(tables[0], tables[1], metric)
        scores = compare_scores(sides.first, sides.second, confidence, metric=sides.metric)
        found.append(
            Compared(
                place=_shared(one, two),
                first=one.name,
                second=two.name,
                task=task,
                metric=sides.metric,
                alone=sides.alone,
                found=scores,
            )
        )
    return found


def _shared(one: Cell, two: Cell) -> str:
    inside = ",".join(f"{axis}={value}" for axis, value in one.coords.items() if two.coords.get(axis) == value)
    stage = one.stage if one.stage == two.stage else f"{one.stage}, {two.stage}"
    return f"{stage}[{inside}]" if inside else stage


def check(study: StudyPath, root: Root = DEFAULT_ROOT, sets: Sets = None, as_json: AsJson = False) -> None:
    """What a careful reader would object to: scores that models share, perfect ones before training, missing items,
    gold answers of one class, two harnesses for one task.

    Example: `tidemark check configs/studies/quickstart.yaml`
    """
    from toolkit.analysis import guards
    from toolkit.analysis.contents import item_findings

    opened = open_study(study, root, sets)
    states = survey(opened.root, opened.study.name, opened.cells)
    table = measured(opened, states)
    found = [*guards.findings(table), *item_findings(opened.cells, folders_of(opened, states))]
    try:
        guards.one_harness(table)
    except ValueError as error:
        found.append(str(error))
    if as_json:
        print_json(found)
    else:
        for finding in found:
            out.print(f"[yellow]{escape(finding)}[/]")
        out.print(f"{table.num_rows} rows, {len(found)} findings")
