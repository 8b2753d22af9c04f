"""The commands that answer from what is there: table, report."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from slurm.status import log_path
from slurm.terminal import DEFAULT_ROOT, Opened, Root, Sets, StudyPath, err, open_study, out, place_for, write_out
from toolkit import lookup
from toolkit.plan import CellState, folder, survey
from toolkit.study import axes

if TYPE_CHECKING:
    import pyarrow as pa


AnyHarness = Annotated[
    bool, typer.Option("--any-harness", help="Allow scores of different harnesses, or versions of one, side by side.")
]


class Format(StrEnum):
    """How a table is written."""

    markdown = "markdown"
    csv = "csv"
    latex = "latex"
    parquet = "parquet"


def table(
    study: StudyPath,
    root: Root = DEFAULT_ROOT,
    sets: Sets = None,
    rows: Annotated[str, typer.Option(help="Columns that label the rows of a pivot, comma-separated.")] = "",
    cols: Annotated[str, typer.Option(help="Columns that label its columns, comma-separated.")] = "",
    values: Annotated[str, typer.Option(help="What it shows: a metric, or value, stderr, n, state.")] = "value",
    where: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN=VALUE", help="Keep these rows; may be repeated.")
    ] = None,
    mean_over: Annotated[str, typer.Option(help="Axes to average over, comma-separated.")] = "",
    paper: Annotated[
        str, typer.Option(metavar="SOURCE", help="Put one's own rows beside this publication's, in its coordinates.")
    ] = "",
    format_: Annotated[Format, typer.Option("--format", help="How to write it.")] = Format.markdown,
    latex: Annotated[bool, typer.Option("--latex", help="Short for --format latex.")] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The file to write (needed for parquet).")
    ] = None,
    any_harness: AnyHarness = False,
) -> None:
    """One row a measurement, or a pivot of it. Cells that were not run are shown as such.

    Example: `tidemark table STUDY --rows step --cols model --values exact_match --where task=all`
    """
    from toolkit.analysis import formats, guards, pivot
    from toolkit.analysis.suspects import suspects

    opened = open_study(study, root, sets)
    long = measured(opened, survey(opened.root, opened.study.name, opened.cells))
    for suspect in suspects(long):
        err.print(f"suspect checkpoint: {escape(suspect)}")
    if paper:
        if not any_harness:
            guards.one_harness(own_rows(long), long.column_names, values)
        long = _beside(paper, long)
    pivot.check_columns(long, names_of(f"{rows},{cols},{mean_over}"))
    chosen = pivot.parse_where(where or [])
    listed = pivot.choose(long, chosen)
    format_ = Format.latex if latex else format_
    if not any_harness and not paper:
        guards.one_harness(listed, names_of(f"{rows},{cols}") or listed.column_names, values)
    data: pa.Table | pivot.Pivot = listed
    if rows or cols:
        data = pivot.pivot(long, names_of(rows), names_of(cols), values, chosen, names_of(mean_over))
    if format_ is Format.parquet:
        if output is None:
            raise ValueError("parquet needs a file: -o TABLE.parquet")
        formats.to_parquet(data, place_for(output))
        return
    text = {Format.markdown: formats.to_markdown, Format.csv: formats.to_csv, Format.latex: formats.to_latex}[format_](
        data
    )
    write_out(text, output)


def _beside(paper: str, long: "pa.Table") -> "pa.Table":
    """The rows of a publication that the study reads and one's own, told apart by the column `source`."""
    import pyarrow as pa

    from toolkit.analysis import gaps, to_frame

    source = lookup.find("toolkit.analysis.published", paper, "source")
    if not hasattr(source, "beside"):
        raise ValueError(f"{source.__name__} cannot put other rows beside its own; leave --paper out")
    return pa.Table.from_pandas(source.beside(to_frame(gaps.spread_gaps(long))), preserve_index=False)


def own_rows(long: "pa.Table") -> "pa.Table":
    """The rows that nobody published."""
    import pyarrow.compute as pc

    return long.filter(pc.not_equal(long["job"].cast("string"), "published"))


def report(
    study: StudyPath,
    root: Root = DEFAULT_ROOT,
    sets: Sets = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The file; ROOT/STUDY.html by default.")] = None,
) -> None:
    """One HTML file that opens offline: curves, heat map, paired comparisons, dynamics, figures, items, the table, and
    where each number comes from.

    Example: `tidemark report configs/studies/quickstart.yaml -o report.html`
    """
    from toolkit.analysis.report import write_report

    opened = open_study(study, root, sets)
    states = survey(opened.root, opened.study.name, opened.cells)
    failed = [cell for cell in opened.cells if states[cell.fingerprint].state == "failed"]
    logs = {cell.fingerprint: log_path(opened.root, cell) for cell in failed}
    path = write_report(
        place_for(output or opened.root / f"{opened.study.name}.html"),
        name=opened.study.name,
        text="".join(f"# --set {word}\n" for word in sets or ()) + study.read_text(encoding="utf-8"),
        cells=opened.cells,
        states=states,
        folders=folders_of(opened, states),
        axes=axes(opened.cells),
        logs={print_: path.read_text(errors="replace")[-4000:] for print_, path in logs.items() if path},
        index=_index(opened),
    )
    out.print(f"report: {escape(str(path))}")


def measured(opened: Opened, states: dict[str, CellState]) -> "pa.Table":
    """The long table of a study, through the root's index."""
    from toolkit.analysis.table import measure

    return measure(opened.cells, states, folders_of(opened, states), axes(opened.cells), _index(opened))


def folders_of(opened: Opened, states: dict[str, CellState]) -> dict[str, Path]:
    """Fingerprint -> committed folder, of the cells that are done."""
    return {c.fingerprint: folder(opened.root, c) for c in opened.cells if states[c.fingerprint].state == "done"}


def _index(opened: Opened) -> Path:
    return opened.root / "index" / f"rows-{opened.study.name}.parquet"


def names_of(words: str) -> list[str]:
    return [word.strip() for word in words.split(",") if word.strip()]
