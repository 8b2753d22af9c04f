"""The items that the report's page can show: prompts, gold answers and what each cell answered, side by side.

Items come from `items.parquet` of evaluations and from `predictions.parquet` of generating stages. Those of one stage
and task make a set; it keeps the first documents of each, so that a page of thousands of cells stays small. Every text
is kept once.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from toolkit.analysis.gaps import show
from toolkit.analysis.payload import label, text_of
from toolkit.study import Cell

ITEMS, MOST, LEAST = 40_000, 200, 5  # answers of a page; documents of a set, at most and at least
SETS, SIDES = 200, 400
COLUMNS = ("doc_id", "id", "prompt", "prediction", "gold", "correct", "loglikelihoods")


def item_sets(cells: Sequence[Cell], folders: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Plain data, one set for each stage and task: `names` and `gold` of the documents, `sides` with the cells' answers
    [prompt, answer, right (or None), a line about it] or None, and the `texts` that these count."""
    stages: dict[str, list[tuple[Cell, Path]]] = {}
    for cell, path in _files(cells, folders):
        stages.setdefault(cell.stage, []).append((cell, path))
    tasks = {stage: _tasks(members[0][1]) for stage, members in stages.items()}
    answers = sum(len(members[:SIDES]) * len(tasks[stage]) for stage, members in stages.items())
    keep = min(MOST, max(LEAST, ITEMS // max(1, answers)))
    wanted = [(stage, task) for stage in stages for task in tasks[stage]][:SETS]
    found = {pair: _Set(keep=keep) for pair in wanted}
    for stage, members in stages.items():
        for cell, path in members[:SIDES]:
            table = _read(path)
            for task in tasks[stage]:
                if (stage, task) in found:
                    found[stage, task].add(cell, table if task is None else table.filter(pc.equal(table["task"], task)))
    named = {pair: " · ".join(label(word) for word in pair if word is not None) for pair in found}
    return [{"name": named[pair], **one.plain()} for pair, one in found.items() if one.sides]


def _files(cells: Sequence[Cell], folders: Mapping[str, Path]) -> Iterator[tuple[Cell, Path]]:
    for cell in cells:
        for name in ("items.parquet", "predictions.parquet"):
            path = folders.get(cell.fingerprint, Path()) / name
            if cell.fingerprint in folders and path.is_file():
                yield cell, path
                break


def _tasks(path: Path) -> list[Any]:
    with pq.ParquetFile(path) as file:
        if "task" not in file.schema_arrow.names:
            return [None]
        return pc.unique(file.read(columns=["task"])["task"]).to_pylist()


def _read(path: Path) -> pa.Table:
    with pq.ParquetFile(path) as file:
        return file.read(columns=[n for n in ("task", *COLUMNS) if n in file.schema_arrow.names])


class _Set:
    """Documents in the order of the first cell, and the answers of all."""

    def __init__(self, keep: int) -> None:
        self.keep, self.total = keep, 0
        self.place: dict[str, int] = {}
        self.gold: list[int] = []
        self.pool: dict[str, int] = {}
        self.sides: list[dict[str, Any]] = []

    def add(self, cell: Cell, table: pa.Table) -> None:
        names = table.column_names
        key = "doc_id" if "doc_id" in names else "id" if "id" in names else None
        self.total = max(self.total, table.num_rows)
        answers: list[list[Any] | None] = [None] * len(self.place)
        for i in range(min(table.num_rows, self.keep)):
            row = {name: table[name][i] for name in names}
            document = f"item {text_of(row[key])}" if key else f"item {i}"
            if document not in self.place:
                self.place[document] = len(self.gold)
                self.gold.append(self._text(row.get("gold")))
                answers.append(None)
            answers[self.place[document]] = self._answer(row)
        self.sides.append({"name": _coordinates(cell), "answers": answers})

    def _answer(self, row: Mapping[str, pa.Scalar]) -> list[Any]:
        right = row["correct"].as_py() if "correct" in row else None
        if right is None and "correct" not in row and "gold" in row:
            right = text_of(row["prediction"]).strip() == text_of(row["gold"]).strip()
        likely = row["loglikelihoods"].as_py() if "loglikelihoods" in row else None
        said = "log-likelihoods " + ", ".join(f"{x:.2f}" for x in likely[:12]) if likely else ""
        return [self._text(row.get("prompt")), self._text(row.get("prediction")), right, said]

    def _text(self, value: pa.Scalar | None) -> int:
        text = text_of(value) if value is not None and value.is_valid else ""
        return self.pool.setdefault(text, len(self.pool))

    def plain(self) -> dict[str, Any]:
        kept = {"kept": min(self.keep, self.total), "total": self.total}
        return {"names": list(self.place), "gold": self.gold, "sides": self.sides, "texts": list(self.pool), **kept}


def _coordinates(cell: Cell) -> str:
    return label(", ".join(f"{axis} {show(value)}" for axis, value in cell.coords.items()) or cell.stage)
