"""The splits of a task data set in a folder: a download from the Hub (parquet), local files (parquet, JSONL, JSON), or
what the job prepare made (`toys`).

A file's split is told by its name (`train-00000-of-00002.parquet`, `gsm8k_test.jsonl`) or, where that is a number, by
its folder (`default/train/0000.parquet`, as the Hub converts data sets that had a script). Labels may lie beside the
rows, line by line (`piqa_valid.jsonl` with `piqa_valid_labels.lst`). Rows are streamed.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.data import files
from toolkit.lookup import unknown

PARQUET, SAVED = ".parquet", "dataset_dict.json"
BATCH = 1000
WORDS = {"train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
         "dev": "validation", "test": "test", "testing": "test"}  # fmt: skip
LABELS = ("_labels.lst", "-labels.lst")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One row as it was published. place: its file and number, for messages."""

    place: str
    values: Mapping[str, Any]

    def text(self, *names: str) -> str:
        """The text in the first of the fields `names` that the row has, without the space around it.

        Raises:
            ValueError: it has none of them, or no text there.
        """
        value = self._value(names)
        if not isinstance(value, str):
            raise ValueError(f"{self.place}: field {names[0]!r} must be text, not {_shown(value)}")
        return value.strip()

    def texts(self, *names: str) -> list[str]:
        """The same of a field that holds a list of texts.

        Raises:
            ValueError: it has none of the fields, or no such list there.
        """
        value = self._value(names)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ValueError(f"{self.place}: field {names[0]!r} must be a list of texts, not {_shown(value)}")
        return [item.strip() for item in value]

    def number(self, *names: str) -> float:
        """The number in a field.

        Raises:
            ValueError: it has none of the fields, or no number there.
        """
        value = self._value(names)
        try:
            return float(value)
        except (TypeError, ValueError):
            raise ValueError(f"{self.place}: field {names[0]!r} must be a number, not {_shown(value)}") from None

    def label(self, names: Sequence[str], *fields: str, first: int = 0) -> int:
        """The number of the right one among `names`, from 0; -1 where the label was not published.

        A label is one of the names, or a number that counts from `first`; -1, "-" and nothing stand for no label.

        Raises:
            ValueError: the row has none of `fields`, or something else there.
        """
        value = self._value(fields or ("label",))
        text = "" if value is None else str(int(value) if isinstance(value, (bool, float)) else value).strip()
        if text in ("", "-", "-1"):
            return -1
        numbers = [str(i + first) for i in range(len(names))]
        for offered in (list(names), numbers):
            if text in offered:
                return offered.index(text)
        raise ValueError(f"{self.place}: {unknown('label', text, [*names, *numbers])}")

    def _value(self, names: Sequence[str]) -> Any:
        for name in names:
            if name in self.values:
                return self.values[name]
        wanted = " or ".join(map(repr, names))
        raise ValueError(f"{self.place}: there is no field {wanted}; the row has {', '.join(sorted(self.values))}")


def _shown(value: Any) -> str:
    return files.excerpt(json.dumps(value, default=str))


def find_splits(path: Path, config: str, pattern: str | None) -> dict[str, list[Path]]:
    """Split -> its files, in the order of their paths.

    config: the folder of one of several data sets in a repository; where there is one of this name, files outside it
        are left out. pattern: the files to take, relative to the folder; None takes all.

    Raises:
        ValueError: no file, a file whose split nobody tells, or a split that lies in two folders.
    """
    if pattern is None and (path / "data" / SAVED).is_file():
        return {name: [path / "data" / name] for name in json.loads((path / "data" / SAVED).read_text())["splits"]}
    endings = (PARQUET, *files.LINES, *files.WHOLE)
    found = files.find_files(path, endings)
    base = path if path.is_dir() else path.parent
    if pattern is not None:
        matching = set(base.glob(pattern))
        chosen = [p for p in found if p in matching]
        if not chosen:
            raise ValueError(f"files: {unknown('file', pattern, (str(p.relative_to(base)) for p in found))}")
        found = chosen
    inside = [p for p in found if config and config in p.relative_to(base).parts[:-1]]
    groups: dict[str, list[Path]] = {}
    for member in inside or found:
        groups.setdefault(_split_of(member, base, len(found)), []).append(member)
    for name, members in groups.items():
        folders = sorted({str(p.parent.relative_to(base)) for p in members})
        if len(folders) > 1:
            raise ValueError(
                f"split {name!r} is in several folders of {base}: {', '.join(folders)}; say which with `files`, for "
                f"example files: {folders[0]}/*"
            )
    return groups


def _split_of(path: Path, base: Path, count: int) -> str:
    stem = path.name.split(".")[0]
    head = re.sub(r"-\d+-of-\d+(-[0-9a-f]+)?$", "", stem)
    if head != stem:
        return WORDS.get(head, head)
    if stem.isdigit() and path.parent != base:
        return WORDS.get(path.parent.name, path.parent.name)
    known = [WORDS[word] for word in re.split(r"[-_]", stem.lower()) if word in WORDS]
    if known:
        return known[-1]
    if count == 1:
        return "train"
    raise ValueError(
        f"{path}: its name does not tell its split, as train.jsonl, a_test.jsonl or test-00000-of-00001.parquet do;"
        " rename it, or say which files to take with `files`"
    )


def rows(members: Sequence[Path]) -> Iterator[Source]:
    """The rows of a split's files, one by one.

    Raises:
        ValueError: a file that is broken, or labels beside it that are not as many.
    """
    for path in members:
        if path.is_dir():
            yield from (Source(place=f"{path}[{i}]", values=row) for i, row in enumerate(_saved(path)))
            continue
        read = _parquet(path) if path.suffix == PARQUET else files.read_rows(path)
        labels = next(
            (p for p in (path.with_name(path.name.split(".")[0] + end) for end in LABELS) if p.is_file()), None
        )
        if labels is None:
            yield from (Source(place=place, values=values) for place, values in read)
            continue
        beside = [line.strip() for line in files.read_lines(labels) if line.strip()]
        count = 0
        for count, (place, values) in enumerate(read, 1):
            if count <= len(beside):
                yield Source(place=place, values={**values, "label": beside[count - 1]})
        if count != len(beside):
            raise ValueError(f"{labels} has {len(beside)} labels, and {path} has {count} rows")


def _saved(folder: Path) -> Iterator[dict[str, Any]]:
    from datasets import load_from_disk

    for batch in load_from_disk(str(folder), keep_in_memory=False).with_format("arrow").iter(batch_size=BATCH):
        yield from batch.to_pylist()


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=BATCH):
            for values in batch.to_pylist():
                yield f"{path}[{number}]", values
                number += 1
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: broken .parquet file: {error}") from None
