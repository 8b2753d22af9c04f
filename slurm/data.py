"""The commands about data: which task data sets there are, and what a model sees of their rows, token by token."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from slurm.terminal import DEFAULT_ROOT, AsJson, Root, Sets, find_cell, open_study, out, print_json
from toolkit.lookup import find, names

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

app = typer.Typer(name="data", help="Task data sets, and what a model sees of them.", no_args_is_help=True)
PACKAGE = "toolkit.data.datasets"
SHOWN = 16  # tokens at either end of a prompt


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """The task data sets: where they are on the Hub, how large, how they are scored, under which licence.

    Example: `tidemark data list`
    """
    from toolkit.data import formats

    known = {name: getattr(find(PACKAGE, name, "dataset"), "ABOUT", None) for name in names(PACKAGE)}
    abouts = {name: about for name, about in known.items() if about is not None}
    if as_json:
        return print_json({name: vars(about) for name, about in abouts.items()})
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("data set", "on the Hub", "rows", "metric", "licence", "templates"):
        table.add_column(column, no_wrap=column in ("data set", "on the Hub"))
    for name, about in abouts.items():
        sizes = ", ".join(f"{split} {count:,}" for split, count in about.rows.items())
        count = f"{about.templates}: {len(formats.read(about.templates))}" if about.templates else "·"
        table.add_row(name, about.repo, sizes, about.metric, about.licence, count)
    out.print(table)


@app.command()
def show(
    dataset: Annotated[
        str,
        typer.Argument(help="A data set, whose files `--files` names, or a study file, whose stage `--stage` names."),
    ],
    tokenizer: Annotated[Path, typer.Option(help="The folder of a tokenizer, or of a model that has one.")],
    files: Annotated[
        Path | None, typer.Option(help="A folder or file with the data set; without one, rows are made up.")
    ] = None,
    stage: Annotated[str, typer.Option(help="A stage of the study that is done and has rows to tune on.")] = "",
    template: Annotated[
        str, typer.Option(help="A template of the data set's; of a stage, its column of that name.")
    ] = "",
    split: Annotated[str, typer.Option(help="Whose rows are shown; the first split by default.")] = "",
    rows: Annotated[int, typer.Option(min=1, help="How many rows, from the beginning.")] = 1,
    chat: Annotated[bool, typer.Option("--chat", help="As turns of the tokenizer's chat template.")] = False,
    max_length: Annotated[int, typer.Option(min=2, help="Cut as a training run of that max_length does.")] = 1024,
    whole: Annotated[bool, typer.Option("--whole", help="Every token of a prompt, not its two ends.")] = False,
    root: Root = DEFAULT_ROOT,
    sets: Sets = None,
) -> None:
    """What the model will see of a row, token by token, and which tokens have a loss.

    Example: `tidemark data show piqa --files data/piqa --template lettered --tokenizer models/olmo`
    """
    from toolkit.checkpoints.folders import load_tokenizer
    from toolkit.training.turns import renderer

    if Path(dataset).suffix in (".yaml", ".py"):
        found = _of_stage(Path(dataset), root, sets, stage, split, template, rows)
    else:
        with tempfile.TemporaryDirectory() as folder:
            found = _of_files(
                dataset, files or _made_up(dataset, split, rows, folder), Path(folder), split, template, rows
            )
    if files is None and not stage:
        out.print(f"[yellow]made-up rows in the fields of {dataset}; --files shows its own[/]")
    loaded = load_tokenizer(tokenizer)
    encode = renderer(loaded, "chat" if chat else "plain")
    for i, row in enumerate(found):
        ((prompt, completion),) = encode({key: [row[key]] for key in ("prompt", "completion")})
        out.print(f"[bold]row {i}[/] {escape(row['told'])}")
        _print(loaded, prompt, completion, max_length, whole)


def _of_files(dataset: str, files: Path, folder: Path, split: str, template: str, count: int) -> list[dict[str, str]]:
    """The first rows of a data set's files, in a template."""
    from toolkit.data import tasks
    from toolkit.data.splits import Splits, open_data, open_split
    from toolkit.spec import build, field_types
    from toolkit.stage import Artifact, Context

    module = find(PACKAGE, dataset, "dataset")
    if hasattr(module, "ABOUT") and module.ABOUT.templates:
        return [_row(row, row["template"]) for row in tasks.peek(dataset, files, split, template or "default", count)]
    words = {"template": template} if template and "template" in field_types(module.Spec) else {}
    splits = Splits(folder / "data")
    inputs = module.Inputs(files=Artifact(path=files))
    module.fill(build(module.Spec, {"dataset": dataset, **words}), inputs, splits, Context(state=folder))
    splits.finish()
    name = split or next(iter(open_data(folder)))
    return [_row(row, template) for row in open_split(folder, name, ["prompt", "completion"], count)]


def _made_up(dataset: str, split: str, count: int, folder: str) -> Path:
    """A folder of rows that `toys` makes."""
    from toolkit.data.datasets import toys
    from toolkit.data.splits import Splits
    from toolkit.data.tasks import describe
    from toolkit.stage import Context

    find(PACKAGE, dataset, "dataset")
    if dataset not in toys.LIKE:
        raise ValueError(f"{dataset}: say with --files where its files are, or name a study file and a --stage of it")
    name = split or next(iter(describe(dataset).rows))
    made = Path(folder) / "made-up"
    splits = Splits(made / "data")
    toys.fill(toys.Spec(dataset="toys", like=dataset, sizes={name: count}), toys.Inputs(), splits, Context(state=made))
    splits.finish()
    return made


def _of_stage(
    study: Path, root: Path, sets: list[str] | None, stage: str, split: str, template: str, count: int
) -> list[dict[str, str]]:
    """The first rows of a prepared stage."""
    from toolkit.data.splits import open_data, open_split
    from toolkit.manifest.record import artifact_folder

    opened = open_study(study, root, sets)
    if not stage:
        raise ValueError(f"say with --stage which of {study}: {', '.join(opened.study.stages)}")
    cell = find_cell(opened, stage)
    folder = artifact_folder(opened.root, cell.job, cell.label, cell.fingerprint)
    if not folder.is_dir():
        raise ValueError(f"{cell.name} is not made yet: `tidemark launch {study}` makes it")
    ends = f"_{template}" if template else ""
    columns = [f"prompt{ends}", f"completion{ends}"]
    rows = open_split(folder, split or next(iter(open_data(folder))), columns, count)
    return [_row({**row, "prompt": row[columns[0]], "completion": row[columns[1]]}, template) for row in rows]


def _row(row: dict[str, Any], template: str) -> dict[str, str]:
    facts = {"template": template or row.get("template", ""), "gold": str(row.get("gold", ""))[:60]}
    told = ", ".join(f"{key} {value!r}" for key, value in facts.items() if value)
    return {"prompt": row["prompt"], "completion": row["completion"], "told": told}


def _print(
    tokenizer: "PreTrainedTokenizerBase", prompt: list[int], completion: list[int], max_length: int, whole: bool
) -> None:
    """A line for each token: its place, its id, its text, and whether it has a loss."""
    cut = (prompt + completion)[max_length:]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, side in (("place", "right"), ("id", "right"), ("token", "left"), ("loss", "left")):
        table.add_column(column, justify=side)  # type: ignore[arg-type]
    for place, token in enumerate((prompt + completion)[:max_length]):
        loss = place >= len(prompt)
        if not whole and SHOWN <= place < len(prompt) - SHOWN:
            if place == SHOWN:
                table.add_row("", "", f"... {len(prompt) - 2 * SHOWN} more ...", "")
            continue
        text = Text(repr(tokenizer.decode([token])), style="bold green" if loss else "dim")
        table.add_row(str(place), str(token), text, "loss" if loss else "·")
    out.print(table)
    targets = max(min(len(completion), max_length - len(prompt)), 0)
    out.print(f"{len(prompt)} tokens of prompt, {len(completion)} of completion, {targets} with a loss")
    if cut:
        what = "it is dropped" if not targets else f"its last {len(cut)} tokens are cut"
        out.print(f"[yellow]the row has more than max_length {max_length} tokens: {what}[/]")
