"""The command `weights`: sizes of models and of their differences."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from slurm.terminal import DEFAULT_ROOT, AsJson, Root, Sets, find_cell, open_study, out, print_json
from toolkit.plan import folder

Model = Annotated[str, typer.Argument(help="A model folder, or with --study a cell.")]
COLUMNS = {
    "base_abs": "|base|", "instruct_abs": "|instruct|", "delta_abs": "|delta|", "change_abs": "|change|",
    "delta_over_base_abs": "delta/base", "change_over_base_abs": "change/base", "change_over_delta_abs": "change/delta",
    "cosine": "cosine", "delta_effective_rank": "rank of delta", "change_effective_rank": "of change",
}  # fmt: skip


def weights(
    base: Model,
    instruct: Model,
    trained: Annotated[str, typer.Argument(help="The same; the change from BASE to it is measured, too.")] = "",
    study: Annotated[Path | None, typer.Option(help="The study whose cells are named.")] = None,
    tensors: Annotated[
        bool, typer.Option("--tensors", help="A line for each tensor, not only for each layer.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Draw the layers into this .pdf, .png or .svg file.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads that read and compute; all cores by default.")] = 0,
    root: Root = DEFAULT_ROOT,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """How large weights and their differences are: mean |x| and mean x^2, ratios, cosine, effective rank.

    delta is INSTRUCT - BASE, change is TRAINED - BASE; effective ranks are of 64 rows and 1,024 columns of each matrix.

    Example: `tidemark weights base instruct "trained[steps=400,lr=0.001]" --study STUDY`
    """
    from toolkit.checkpoints.whole import whole
    from toolkit.merging.weights import compare

    named = {"base": base, "instruct": instruct} | ({"trained": trained} if trained else {})
    found = {role: _folder(word, study, root, sets) for role, word in named.items()}
    with TemporaryDirectory(prefix="tidemark-") as scratch:
        plain = {role: whole(path, Path(scratch)) for role, path in found.items()}
        rows = list(compare(plain, threads or len(os.sched_getaffinity(0))).rows())
    if output:
        from toolkit.analysis import plots
        from toolkit.analysis.weights import layers

        out.print(str(plots.save(plots.draw(layers(rows)), output)))
    if as_json:
        print_json(rows)
    else:
        _print([row for row in rows if tensors or row["part"] != "tensor"])


def _folder(word: str, study: Path | None, root: Path, sets: list[str] | None) -> Path:
    """The model that a person names.

    Raises:
        ValueError: no model is there.
    """
    if (Path(word) / "config.json").is_file() or study is None:
        if not Path(word).is_dir():
            raise ValueError(f"{word!r} is no folder: give a model folder, or --study STUDY and a cell of it")
        return Path(word)
    opened = open_study(study, root, sets)
    path = folder(opened.root, find_cell(opened, word))
    if not path.is_dir():
        raise ValueError(f"{word} of {opened.study.name} is not there yet: `tidemark launch {study}` makes it")
    return path


def _print(rows: Sequence[Mapping[str, Any]]) -> None:
    shown = [key for key in COLUMNS if any(key in row for row in rows)]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    for key in ("elements", *(COLUMNS[key] for key in shown)):
        table.add_column(key, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row["name"], f"{row['elements']:,}", *(f"{row[key]:.4g}" if key in row else "·" for key in shown))
    # a terminal may be narrower: a table that wraps is read, one that is cut is not
    Console(highlight=False, width=max(out.width, 160)).print(table)
