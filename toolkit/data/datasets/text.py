"""Text files or JSON rows as documents: splits `train` and `validation` with the column `text`.

Plain text (.txt, .md) is cut into documents as `documents` says; in .jsonl and .json every row is a document.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from toolkit.data import files
from toolkit.data.divide import add_rows, check_shares, divide
from toolkit.data.splits import Splits
from toolkit.stage import Artifact, Context


@dataclass(frozen=True, kw_only=True)
class Spec:
    """How to cut text into documents.

    documents: of a text file: the whole `file`, each `line`, each `paragraph` (blank lines between), or from one
        `heading` to the next. Blank documents do not count.
    heading: a regular expression that a whole heading line matches; ` = [^=].* = ` for the articles of WikiText.
    field: where the text stands in a JSON row.
    validation_fraction: share of the documents, drawn at random by `seed`, that goes to `validation`; 0 for none.
    """

    dataset: str
    documents: Literal["file", "line", "paragraph", "heading"] = "file"
    heading: str | None = None
    field: str = "text"
    validation_fraction: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.documents == "heading") != (self.heading is not None):
            raise ValueError(
                "documents: heading and heading: REGULAR EXPRESSION belong together; "
                f"documents is {self.documents!r} and heading {self.heading!r}"
            )
        try:
            re.compile(self.heading or "")
        except re.error as error:
            raise ValueError(f"heading {self.heading!r} is not a regular expression: {error}") from None
        check_shares(validation_fraction=self.validation_fraction)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """files: a .txt, .md, .jsonl or .json file (also .gz), or a folder of such."""

    files: Artifact


def fill(spec: Spec, inputs: Inputs, splits: Splits, ctx: Context) -> dict[str, Any]:
    """Metrics: files and documents. Reads the files twice: once to count, once to write."""
    found = files.find_files(inputs.files.path, files.TEXT + files.LINES + files.WHOLE)
    _refuse_unused(spec, found)
    total = sum(1 for _ in documents(found, spec))
    if not total:
        raise ValueError(f"{inputs.files.path} holds no text: every document in it is blank")
    division = divide(total, "train", {"validation": spec.validation_fraction}, spec.seed, str(inputs.files.path))
    add_rows(splits, ({"text": text} for text in documents(found, spec)), division, "document", ctx)
    return {"files": len(found), "documents": total}


def _refuse_unused(spec: Spec, found: list[Path]) -> None:
    """An option that none of the files can heed is a mistake of the user."""
    endings = {files.ending(p) for p in found}
    if spec.documents != "file" and not endings & set(files.TEXT):
        raise ValueError(
            f"documents: {spec.documents} cuts text files, and there are only {', '.join(sorted(endings))} files, "
            "whose rows are the documents; leave it out"
        )
    if spec.field != "text" and not endings & {*files.LINES, *files.WHOLE}:
        raise ValueError(f"field: {spec.field} is for JSON rows, and there are only text files; leave it out")


def documents(found: Iterable[Path], spec: Spec) -> Iterator[str]:
    """The documents of all files in order, without those that are blank.

    Raises:
        ValueError: a file that cannot be read, a row without the field.
    """
    for path in found:
        if files.ending(path) in files.TEXT:
            texts = _cut(files.read_lines(path), spec)
        else:
            texts = (files.text_field(row, spec.field, place) for place, row in files.read_rows(path))
        yield from (text for text in texts if text.strip())


def _cut(lines: Iterable[str], spec: Spec) -> Iterator[str]:
    """A text file as documents, without the newlines around them."""
    heading = re.compile(spec.heading or "")
    part: list[str] = []
    for line in lines:
        blank = spec.documents == "paragraph" and not line.strip()
        titled = spec.documents == "heading" and heading.fullmatch(line.rstrip("\n"))
        if part and (spec.documents == "line" or blank or titled):
            yield "".join(part).strip("\n")
            part = []
        if not blank:
            part.append(line)
    yield "".join(part).strip("\n")
