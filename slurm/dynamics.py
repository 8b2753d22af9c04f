"""The command that says what tuning does to checkpoints: dynamics."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slurm.answers import Format, folders_of, measured, names_of
from slurm.terminal import DEFAULT_ROOT, Opened, Root, Sets, StudyPath, open_study, place_for, write_out
from toolkit import lookup
from toolkit.fingerprint import SHORT
from toolkit.plan import CellState, survey

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


class Operation(StrEnum):
    """What is asked; each is a function of `toolkit.analysis.dynamics`, `signals` or `merges` with its formula."""

    gain = "gain"
    average = "average"
    relative = "relative"
    forgetting = "forgetting"
    transfer = "transfer"
    formats = "formats"
    learned = "learned"
    revealed = "revealed"
    slopes = "slopes"
    breaks = "breaks"
    ranks = "ranks"
    signals = "signals"
    merges = "merges"


ALONE = (Operation.formats, Operation.slopes, Operation.breaks, Operation.signals, Operation.merges)  # need no base
PAIRED = (Operation.average, Operation.relative, Operation.forgetting, Operation.transfer)
USED = {  # the operations that an option means something for
    "--pairs": PAIRED,
    "--over": PAIRED,
    "--in-domain": (Operation.transfer,),
    "--by": tuple(o for o in Operation if o not in ALONE),
    "--paper": tuple(o for o in Operation if o not in (Operation.formats, Operation.signals, Operation.merges)),
}


def dynamics(
    study: StudyPath,
    operation: Annotated[Operation, typer.Argument(help="What to work out.")],
    by: Annotated[str, typer.Option(help="The column that tells tuned models from their base.")] = "",
    base: Annotated[str, typer.Option(help="Its value for the base; found by itself where a study has one.")] = "",
    over: Annotated[str, typer.Option(help="Columns that a mean is not over, comma-separated; `-` for none.")] = "",
    pairs: Annotated[
        str,
        typer.Option(metavar="MODEL:TASK,...", help="Tuned model and task of a mean, or a group of --paper."),
    ] = "",
    in_domain: Annotated[str, typer.Option(metavar="MODEL:TASK,...", help="Of transfer: pairs of the own task.")] = "",
    where: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN=VALUE", help="Keep these rows; may be repeated.")
    ] = None,
    paper: Annotated[
        str, typer.Option(metavar="SOURCE", help="Take the rows that this publication averages, and its groups.")
    ] = "",
    root: Root = DEFAULT_ROOT,
    sets: Sets = None,
    format_: Annotated[Format, typer.Option("--format", help="How to write it.")] = Format.markdown,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The file to write.")] = None,
) -> None:
    """Gain, forgetting, transfer, sensitivity, trends, rank correlations and merges of a study or of published tables.

    Example: `tidemark dynamics STUDY average --paper amuro --pairs learned-in-tuning`
    """
    from toolkit.analysis import gaps, pivot, to_frame
    from toolkit.analysis.bases import base_of

    given = {"--pairs": pairs, "--over": over, "--in-domain": in_domain, "--by": by or base, "--paper": paper}
    _refuse_idle(operation, given)
    opened = open_study(study, root, sets)
    states = survey(opened.root, opened.study.name, opened.cells)
    table = gaps.spread_gaps(pivot.choose(measured(opened, states), pivot.parse_where(where or [])))
    if operation is Operation.merges:
        return _write(_merges(opened, states, table), format_, output)
    source = lookup.find("toolkit.analysis.published", paper, "source") if paper else None
    found = (by, base) if by and base else base_of(opened.cells, table)
    if found is None and operation not in ALONE:
        raise ValueError("no axis of this study has a base that others were made from: say --by COLUMN --base VALUE")
    frame = to_frame(table)
    scores = frame[frame["task"].notna() & frame["metric"].notna()]
    if source is not None and hasattr(source, "paper_rows"):
        scores, found = source.paper_rows(scores), ("train", source.BASE)
    groups = getattr(source, "GROUPS", {})
    if operation in PAIRED and not pairs:
        raise ValueError(f"{operation} is a mean over pairs: say --pairs MODEL:TASK,...{_or_groups(groups)}")
    if operation is Operation.transfer and not in_domain:
        raise ValueError("transfer is held against the model's own task: say --in-domain MODEL:TASK,... as well")
    axis, value = found or ("", "")
    asked = _Asked(
        rows=frame if operation is Operation.signals else scores,
        by=by or axis,
        base=base or value,
        over=None if not over else [] if over == "-" else names_of(over),
        pairs=_pairs(pairs, groups) if pairs else (),
        own=_pairs(in_domain, groups) if in_domain else (),
    )
    _write(asked.answer(operation), format_, output)


def _merges(opened: Opened, states: dict[str, CellState], table: "pa.Table") -> "pd.DataFrame":
    """Of the cells that the table has rows of."""
    from toolkit.analysis import merges

    found = merges.kept(opened.cells, folders_of(opened, states), most=None)
    for note in found.notes:
        typer.echo(note, err=True)
    asked = set(table["fingerprint"].to_pylist())
    rows = [one for one in found.rows if one.cell.fingerprint[:SHORT] in asked]
    if not rows:
        raise ValueError("no merged model here has a score, with its items, that two or more of its parents have, too")
    return merges.frame(rows)


def _refuse_idle(operation: Operation, given: dict[str, str]) -> None:
    for option, value in given.items():
        if value and operation not in USED[option]:
            raise ValueError(f"{option} means nothing for {operation}: it is for {', '.join(USED[option])}")


def _write(made: "pd.DataFrame", format_: Format, output: Path | None) -> None:
    from toolkit.analysis import formats

    if format_ is Format.parquet:
        if output is None:
            raise ValueError("parquet needs a file: -o TABLE.parquet")
        made.to_parquet(place_for(output))
        return
    write_out(formats.frame_text(made, format_.value), output)


def _or_groups(groups: dict[str, Any]) -> str:
    return f" or one of {', '.join(groups)}" if groups else " (with --paper SOURCE its groups)"


def _pairs(words: str, groups: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """`mnli:rte,paws:qqp`, or the name of a group."""
    if words in groups:
        return tuple(groups[words])
    found = []
    for word in words.split(","):
        model, colon, task = word.partition(":")
        if not colon:
            raise ValueError(f"{word!r} is no pair MODEL:TASK{_or_groups(groups)}")
        found.append((model, task))
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """The rows, what tells tuned models from their base, and what a mean is not over (None: nothing was said)."""

    rows: "pd.DataFrame"
    by: str
    base: str
    over: list[str] | None
    pairs: tuple[tuple[str, str], ...]
    own: tuple[tuple[str, str], ...]

    def answer(self, operation: Operation) -> "pd.DataFrame":
        from toolkit.analysis import dynamics as d
        from toolkit.analysis import signals

        rows, axis = self.rows, "tokens" if "tokens" in self.rows else "step"
        steps = [name for name in ("step", axis) if name in rows][:1]
        # a mean over a publication's rows and one's own would be of neither
        apart = ["source"] if "source" in rows and rows["source"].nunique() > 1 else []
        means = list(dict.fromkeys([*apart, *(steps if self.over is None else self.over)]))
        each = list(dict.fromkeys([*apart, *([self.by, *steps] if self.over is None else self.over)]))
        asked: dict[Operation, Callable[[], pd.DataFrame]] = {
            Operation.gain: lambda: _without(self.gains()),
            Operation.average: lambda: d.average(self.gains(), self.pairs, means, by=self.by),
            Operation.relative: lambda: d.mean_relative_change(self.gains(), self.pairs, each, self.by),
            Operation.forgetting: lambda: d.forgetting(self.gains(), self.pairs, each, self.by),
            Operation.transfer: lambda: d.transfer(self.gains(), self.own, self.pairs, each, self.by),
            Operation.formats: lambda: _formats(rows),
            Operation.learned: lambda: d.learned_in(rows, self.by, self.base, axis),
            Operation.revealed: lambda: d.revealed_by_tuning(self.gains(), axis),
            Operation.slopes: lambda: d.slopes(rows, axis),
            Operation.breaks: lambda: d.breaks(rows, axis),
            Operation.ranks: lambda: d.ranks(self.gains(), axis),
            Operation.signals: lambda: signals.listed(rows, axis if axis in rows else None),
        }
        return asked[operation]()

    def gains(self) -> "pd.DataFrame":
        from toolkit.analysis.dynamics import gain

        return gain(self.rows, self.by, self.base)


def _formats(rows: "pd.DataFrame") -> "pd.DataFrame":
    from toolkit.analysis.dynamics import format_sensitivity

    if "format" not in rows:
        raise ValueError(lookup.unknown("axis", "format", map(str, rows.columns)) + ": an axis of that name is needed")
    return format_sensitivity(rows)


def _without(gains: "pd.DataFrame") -> "pd.DataFrame":
    """Of a gain only what a reader needs: columns that say nothing here are left out."""
    empty = [name for name in gains if gains[name].isna().all()]
    return gains.drop(columns=[*empty, "fingerprint", "job", "state"], errors="ignore")
