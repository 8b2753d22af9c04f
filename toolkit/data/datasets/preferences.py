"""Preferences from JSON: splits `train`, `validation` and `heldout` with `prompt`, `chosen` and `rejected`, each text.

A row has `prompt`, or `instruction` and maybe `input`, which the template makes a prompt of; and a `chosen` and a
`rejected` answer. A pair of equal answers says nothing and is refused, or dropped.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.data import files
from toolkit.data.divide import add_rows, check_shares, divide
from toolkit.data.splits import Splits
from toolkit.data.templates import TEMPLATES, Template
from toolkit.stage import Artifact, Context


@dataclass(frozen=True, kw_only=True)
class Spec:
    """template: how instruction / input become a prompt.

    validation_fraction, heldout_fraction: shares of the rows, drawn at random by `seed`; 0 for no such split.
    drop_equal: leave out pairs of equal (or empty) answers instead of refusing them.
    """

    dataset: str
    template: Template = "alpaca"
    validation_fraction: float = 0.0
    heldout_fraction: float = 0.1
    seed: int = 0
    drop_equal: bool = False

    def __post_init__(self) -> None:
        check_shares(validation_fraction=self.validation_fraction, heldout_fraction=self.heldout_fraction)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """files: a .json or .jsonl file (also .gz), or a folder of such."""

    files: Artifact


def fill(spec: Spec, inputs: Inputs, splits: Splits, ctx: Context) -> dict[str, Any]:
    """Metrics: rows read and rows dropped, and how many words the chosen answers have for each of the rejected ones."""
    path = inputs.files.path
    found = files.find_files(path, files.LINES + files.WHOLE)
    kept = list(_rows(spec, found))
    read = sum(1 for member in found for _ in files.read_rows(member))
    shares = {"validation": spec.validation_fraction, "heldout": spec.heldout_fraction}
    add_rows(splits, kept, divide(len(kept), "train", shares, spec.seed, str(path)), "row", ctx)
    words = {name: sum(len(row[name].split()) for row in kept) for name in ("chosen", "rejected")}
    return {
        "rows_read": read,
        "rows_dropped": read - len(kept),
        "length_ratio": words["chosen"] / max(words["rejected"], 1),
    }


def _rows(spec: Spec, found: list[Path]) -> Iterator[dict[str, str]]:
    for path in found:
        for place, row in files.read_rows(path):
            chosen, rejected = (files.text_field(row, name, place).strip() for name in ("chosen", "rejected"))
            if chosen and rejected and chosen != rejected:
                prompt, space = _prompt(spec, row, place)
                yield {"prompt": prompt, "chosen": space + chosen, "rejected": space + rejected}
            elif not spec.drop_equal:
                what = "are equal" if chosen == rejected else "lack one"
                raise ValueError(
                    f"{place}: the answers {what}, so that nothing is preferred: {files.show(row)}; drop_equal: true "
                    "leaves such rows out"
                )


def _prompt(spec: Spec, row: dict[str, Any], place: str) -> tuple[str, str]:
    """The prompt, which does not end in a space, and what separates an answer from it."""
    if "prompt" in row:
        prompt = files.text_field(row, "prompt", place).rstrip(" ")
        return prompt, "" if prompt.endswith("\n") else " "
    context = files.text_field(row, "input", place) if row.get("input") is not None else ""
    prompt, answer = TEMPLATES[spec.template](files.text_field(row, "instruction", place), context, "x")
    return prompt, answer.removesuffix("x")
