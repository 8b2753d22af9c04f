"""Instruction data from JSON: splits `train`, `validation` and `heldout` with `prompt`, `completion` and `gold`.

A row is instruction / input / output, prompt / completion (taken as it is), or messages (a conversation whose last turn
is the assistant's). `gold` is the completion without the space around it. A space at the end of a prompt is moved to
the beginning of the completion: the text is the same, and tuned models answer prompts that end in one with nothing.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.data import files
from toolkit.data.divide import add_rows, check_shares, divide
from toolkit.data.splits import Splits
from toolkit.data.templates import SPEAKERS, TEMPLATES, Template, conversation
from toolkit.lookup import unknown
from toolkit.stage import Artifact, Context

OWN = ("prompt", "completion", "gold")


@dataclass(frozen=True, kw_only=True)
class Spec:
    """template: how instruction / input / output become text. keep: further fields that become columns.

    validation_fraction, heldout_fraction: shares of the rows, drawn at random by `seed`; 0 for no such split.
    drop_empty: leave out rows without an answer instead of refusing them.
    """

    dataset: str
    template: Template = "alpaca"
    validation_fraction: float = 0.0
    heldout_fraction: float = 0.1
    seed: int = 0
    keep: tuple[str, ...] = ()
    drop_empty: bool = False

    def __post_init__(self) -> None:
        check_shares(validation_fraction=self.validation_fraction, heldout_fraction=self.heldout_fraction)
        clash = [name for name in self.keep if name in OWN]
        if clash:
            raise ValueError(f"keep: {clash[0]!r} is a column that is there already; rename the field in the file")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """files: a .json or .jsonl file (also .gz), or a folder of such."""

    files: Artifact


def fill(spec: Spec, inputs: Inputs, splits: Splits, ctx: Context) -> dict[str, Any]:
    """Metrics: rows read, rows dropped for want of an answer, and rows whose prompt ended in a space."""
    path = inputs.files.path
    found = files.find_files(path, files.LINES + files.WHOLE)
    moved: Counter[str] = Counter()
    total = sum(1 for _ in _rows(spec, found, moved))
    read = total if not spec.drop_empty else sum(1 for member in found for _ in files.read_rows(member))
    shares = {"validation": spec.validation_fraction, "heldout": spec.heldout_fraction}
    add_rows(splits, _rows(spec, found, Counter()), divide(total, "train", shares, spec.seed, str(path)), "row", ctx)
    return {"rows_read": read, "rows_dropped": read - total, "spaces_moved": moved.total()}


def _rows(spec: Spec, found: list[Path], moved: Counter[str]) -> Iterator[dict[str, Any]]:
    """The rows that have an answer; counts the files' rows whose prompt ended in a space."""
    for path in found:
        for place, row in files.read_rows(path):
            prompt, completion = render(row, place, spec.template)
            if completion.strip():
                kept = {name: _kept(row, name, place) for name in spec.keep}
                spaces = len(prompt) - len(prompt.rstrip(" "))
                moved[str(path)] += spaces > 0
                prompt, completion = prompt.rstrip(" "), " " * spaces + completion
                yield {"prompt": prompt, "completion": completion, "gold": completion.strip(), **kept}
            elif not spec.drop_empty:
                raise ValueError(f"{place}: the answer is empty: {files.show(row)}; drop_empty: true leaves it out")


def render(row: dict[str, Any], place: str, template: Template) -> tuple[str, str]:
    """(prompt, completion) of a row; which of the three forms it has is told by its fields.

    Raises:
        ValueError: none of the forms, or a field that is missing or of the wrong type.
    """
    if "messages" in row:
        return conversation(_turns(row, place))
    if "prompt" in row:
        return files.text_field(row, "prompt", place), files.text_field(row, "completion", place)
    if "instruction" not in row:
        raise ValueError(
            f"{place}: a row has 'instruction' and 'output' (and maybe 'input'), or 'prompt' and 'completion', or "
            f"'messages'; this one has {', '.join(map(repr, sorted(row))) or 'nothing'}: {files.show(row)}"
        )
    context = files.text_field(row, "input", place) if row.get("input") is not None else ""
    instruction, output = (files.text_field(row, name, place) for name in ("instruction", "output"))
    return TEMPLATES[template](instruction, context, output)


def _turns(row: dict[str, Any], place: str) -> list[tuple[str, str]]:
    messages = row["messages"]
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise ValueError(f"{place}: 'messages' must be a list of {{role, content}}: {files.show(row)}")
    turns = [(files.text_field(m, "role", place), files.text_field(m, "content", place)) for m in messages]
    for role, _ in turns:
        if role not in SPEAKERS:
            raise ValueError(f"{place}: {unknown('role', role, SPEAKERS)}")
    if turns[-1][0] != "assistant":
        raise ValueError(f"{place}: the last message must be the assistant's, not the {turns[-1][0]}'s")
    return turns


def _kept(row: dict[str, Any], name: str, place: str) -> Any:
    if name not in row:
        raise ValueError(f"{place}: keep: {unknown('field', name, row)}")
    return row[name]
