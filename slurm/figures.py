"""The command that draws for print: figure."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from slurm.answers import AnyHarness, folders_of, measured, names_of, own_rows
from slurm.terminal import DEFAULT_ROOT, Root, Sets, StudyPath, err, open_study, out, place_for
from toolkit import lookup
from toolkit.plan import survey

if TYPE_CHECKING:
    import pandas as pd

    from toolkit.analysis.charts import Chart


class Scaling(StrEnum):
    """How the checkpoints of a figure are spaced; `even` gives each the same room, as a categorical axis does."""

    log = "log"
    linear = "linear"
    even = "even"


class Kind(StrEnum):
    """What a figure shows."""

    curves = "curves"
    heat = "heat"
    signal = "signal"


def figure(
    study: StudyPath,
    output: Annotated[Path, typer.Option("-o", "--output", help="A .pdf, .png or .svg file; with --paper a folder.")],
    kind: Annotated[
        Kind, typer.Option(help="Curves over checkpoints, a heat map checkpoint by task, or a signal beside a score.")
    ] = Kind.curves,
    over: Annotated[str, typer.Option(help="The axis of checkpoints; tokens, or else step, by default.")] = "",
    lines: Annotated[str, typer.Option(help="Columns that tell lines apart; by default all that differ.")] = "",
    panels: Annotated[str, typer.Option(help="Columns that tell panels apart; task,metric by default.")] = "",
    signal: Annotated[
        str,
        typer.Option(
            metavar="STAGE.METRIC", help="With --kind signal: the cheap number, or STAGE.METRIC@TASK, a score."
        ),
    ] = "",
    scale: Annotated[
        Scaling | None, typer.Option(help="How checkpoints are spaced; log, where they allow it, by default.")
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN=VALUE", help="Keep these rows; may be repeated.")
    ] = None,
    paper: Annotated[
        str, typer.Option(metavar="SOURCE", help="Draw the figures of this publication, from the rows of the study.")
    ] = "",
    root: Root = DEFAULT_ROOT,
    sets: Sets = None,
    any_harness: AnyHarness = False,
) -> None:
    """Figures for print, with intervals, the level of guessing and marks for what was not run.

    Example: `tidemark figure STUDY -o acc.pdf --where metric=acc --lines model --panels task`
    """
    from toolkit.analysis import charts, contents, gaps, guards, pivot, plots, to_frame

    given = {"--over": over, "--lines": lines, "--panels": panels, "--scale": scale, "--signal": signal}
    _refuse_idle("--paper" if paper else kind.value, {**given, "--kind": kind is not Kind.curves}, output)
    opened = open_study(study, root, sets)
    long = measured(opened, states := survey(opened.root, opened.study.name, opened.cells))
    table = gaps.spread_gaps(pivot.choose(long, pivot.parse_where(where or [])))
    frame = to_frame(table)
    frame = frame[frame["task"].notna() & frame["metric"].notna()]
    chosen = scale.value if scale else None
    if not any_harness and paper:
        guards.one_harness(own_rows(table))
    if paper:
        return _draw_paper(paper, frame, chosen, output)
    shown = names_of(panels or "task,metric")
    over = over or _axis(frame)
    told = names_of(lines) or _differ(frame, gaps.keys(table), {over, "step", "tokens", "seed", *shown})
    charts.check_columns(frame, [*([] if kind is Kind.signal else [over]), *told, *shown])
    if not any_harness:
        guards.one_harness(table, [over, *told, *shown])
    if kind is Kind.signal:
        made = _beside(to_frame(gaps.spread_gaps(long)), frame, signal, told)
    elif kind is Kind.heat:
        made = charts.heat(frame, over)
    else:
        chance = contents.chances(opened.cells, folders_of(opened, states))
        made = charts.curves(frame, over, told, shown, chance=chance)
    out.print(escape(str(plots.save(plots.draw(made, chosen), place_for(output)))))


def _refuse_idle(drawn: str, given: dict[str, object], output: Path) -> None:
    """What means nothing for what is drawn would be accepted and ignored."""
    if bool(given["--signal"]) != (drawn == "signal"):
        raise ValueError("--signal STAGE.METRIC and --kind signal go together")
    used = {
        "curves": {"--over", "--lines", "--panels", "--scale"},
        "heat": {"--over", "--kind"},
        "signal": {"--lines", "--signal", "--kind"},
        "--paper": {"--scale"},
    }
    idle = [option for option, value in given.items() if value and option not in used[drawn]]
    if idle:
        raise ValueError(f"{idle[0]} means nothing for {drawn}: leave it out")
    if drawn == "--paper" and output.suffix in (".pdf", ".png", ".svg"):
        raise ValueError(f"--paper writes many figures: give -o a folder, not {str(output)!r}")


def _axis(frame: "pd.DataFrame") -> str:
    """Tokens, unless there is a step of a model whose tokens a step nobody said."""
    steps = frame["step"].count() if "step" in frame else 0
    return "tokens" if "tokens" in frame and frame["tokens"].count() >= max(1, steps) else "step"


def _differ(frame: "pd.DataFrame", names: Sequence[str], fixed: set[str]) -> list[str]:
    """The columns that tell rows apart and are not shown by place."""
    return [name for name in names if name not in fixed and frame[name].nunique(dropna=False) > 1]


def _beside(whole: "pd.DataFrame", scores: "pd.DataFrame", signal: str, lines: Sequence[str]) -> "Chart":
    """The scores that were chosen, beside the signal at the same coordinates."""
    from toolkit.analysis import charts
    from toolkit.analysis.signals import beside

    pairs = beside(whole, signal, scores)
    if pairs.empty:
        raise ValueError(f"no score that was chosen has the coordinates of {signal!r}: there is nothing to draw")
    metrics = " and ".join(pairs["metric"].unique())
    told = [name for name in [*lines, "task"] if name in pairs and pairs[name].nunique(dropna=False) > 1]
    return charts.scatter(pairs.rename(columns={"value": metrics}), signal, metrics, list(dict.fromkeys(told)))


def _draw_paper(paper: str, frame: "pd.DataFrame", scale: str | None, output: Path) -> None:
    """All figures that the rows allow, as PDF and PNG; of the others why not."""
    from toolkit.analysis import plots

    drawn, source = 0, lookup.find("toolkit.analysis.published", paper, "source")
    if not hasattr(source, "figures"):
        raise ValueError(f"{source.__name__} brings no figures: only its rows can be drawn, without --paper")
    for name, make in source.figures(frame).items():
        try:
            made = plots.draw(make(), scale)
        except ValueError as error:
            err.print(f"[yellow]{escape(name)} is not drawn: {escape(str(error))}[/]")
            continue
        drawn += 1
        for suffix in (".pdf", ".png"):
            out.print(escape(str(plots.save(made, output / f"{name}{suffix}"))))
    if not drawn:
        raise ValueError(f"no figure of {paper!r} can be drawn from the rows of this study: the lines above say why")
