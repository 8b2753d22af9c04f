"""Read the text and JSON files that a user points to, line by line, with errors that say where.

A file or a folder is given; in a folder every file with a known ending counts, in the order of its path. `.gz` is read
through. Rows of JSONL and JSON come with their place, `file.jsonl:12`, for the messages of whoever reads them.
"""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from toolkit.manifest.record import LOG, RECORD

TEXT, LINES, WHOLE = (".txt", ".md"), (".jsonl",), (".json",)
EXCERPT = 80  # characters of bad content that a message shows


def find_files(path: Path, endings: tuple[str, ...]) -> list[Path]:
    """The files at `path` with one of `endings` (also with `.gz` after it), sorted by path.

    Raises:
        ValueError: there is none.
    """
    own = (
        {path / RECORD, path / LOG} if (path / RECORD).is_file() else set()
    )  # an artifact's record and log are no data
    offered = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file() and p not in own)
    found = [p for p in offered if ending(p) in endings]
    if not found:
        there = f"; it has {', '.join(sorted({p.name for p in offered})[:5])}" if path.is_dir() and offered else ""
        what = "has none" if path.exists() else "does not exist"
        raise ValueError(f"{path} {what}; needed: a file or folder of {', '.join(endings)} (or the same .gz){there}")
    return found


def ending(path: Path) -> str:
    """`.jsonl` of `a/b.jsonl` and of `a/b.jsonl.gz`, in lower case."""
    return (path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.lower()


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file with their newlines (as `\\n`), without a byte order mark.

    Raises:
        ValueError: bytes that are not UTF-8, or a `.gz` file that is broken.
    """
    number = 0
    try:
        with _open(path) as stream:
            for number, line in enumerate(stream, 1):
                yield line
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 after line {number}: {error.reason}; convert the file to UTF-8") from None
    except (gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"{path}: broken gzip file after line {number}: {error}") from None


def _open(path: Path) -> IO[str]:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig")
    return path.open(encoding="utf-8-sig")


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) of a JSONL file, or of a JSON file that holds an array of objects; blank lines are passed over.

    Raises:
        ValueError: broken JSON or a row that is no object, with file, line and content.
    """
    if ending(path) in LINES:
        for number, line in enumerate(read_lines(path), 1):
            if line.strip():
                place = f"{path}:{number}"
                yield place, _object(parse_line(line, place), place)
        return
    text = "".join(read_lines(path))
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        near = excerpt(text[max(error.pos - 20, 0) :])
        raise ValueError(f"{path}:{error.lineno}: broken JSON ({error.msg}) near {near}") from None
    if not isinstance(rows, list):
        raise ValueError(f"{path}: must hold a JSON array of objects, not {excerpt(text)}; one object a line is .jsonl")
    for number, row in enumerate(rows):
        yield f"{path}[{number}]", _object(row, f"{path}[{number}]")


def parse_line(line: str, place: str) -> Any:
    """One line of JSONL; `place` is its `file:line`.

    Raises:
        ValueError: broken JSON.
    """
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: broken JSON ({error.msg} at column {error.colno}): {excerpt(line)}") from None


def _object(row: Any, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f'{place}: a row must be an object such as {{"text": ...}}, not {excerpt(json.dumps(row))}')
    return row


def text_field(row: dict[str, Any], field: str, place: str) -> str:
    """The string in `field` of a row.

    Raises:
        ValueError: it is missing or no string.
    """
    if field not in row:
        raise ValueError(f"{place}: no field {field!r}; the row has {', '.join(sorted(row)) or 'none'}: {show(row)}")
    value = row[field]
    if not isinstance(value, str):
        raise ValueError(f"{place}: field {field!r} must be a string, not {excerpt(json.dumps(value))}")
    return value


def show(row: dict[str, Any]) -> str:
    """The beginning of a row, for a message."""
    return excerpt(json.dumps(row, ensure_ascii=False))


def excerpt(text: str) -> str:
    """The first characters of bad content, quoted."""
    text = text.strip()
    return repr(text[:EXCERPT] + ("..." if len(text) > EXCERPT else ""))
