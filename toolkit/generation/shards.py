"""Answers on disk as parquet shards that survive a kill: whole batches, one file each, published by rename.

Shards are cut from the list of batches alone, so another attempt cuts the same ones; a file whose rows are not the
expected ones (the token budget was changed between attempts) is generated anew.
"""

import os
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from toolkit.generation.engine import Answer
from toolkit.generation.rows import Row

SHARD_TOKENS = 16384  # new tokens of a shard: what a kill can cost, about two minutes of a small model on one core
MOST_SHARDS = 1000  # files of one stage, whatever its size
SHARD: dict[str, pa.DataType] = {"id": pa.int64(), "text": pa.string(), "tokens": pa.int64(), "ended": pa.bool_()}


def cut(batches: Sequence[list[Row]], new_tokens: int, least: int = SHARD_TOKENS) -> list[list[list[Row]]]:
    """Consecutive batches as shards of at least `least` new tokens, at most MOST_SHARDS of them."""
    total = sum(len(batch) for batch in batches) * new_tokens
    least = max(least, -(-total // MOST_SHARDS))
    shards: list[list[list[Row]]] = []
    size = least
    for batch in batches:
        if size >= least:
            shards.append([])
            size = 0
        shards[-1].append(batch)
        size += len(batch) * new_tokens
    return shards


def fill(
    folder: Path,
    shards: Sequence[list[list[Row]]],
    answer: Callable[[list[Row]], list[Answer]],
    report: Callable[[list[Answer], bool], None],
) -> list[Answer]:
    """Every row's answer, sorted by id: from the shards in `folder` where they are there, else batch by batch.

    answer: the answers of one batch, in its order.
    report: told the answers of each shard found (True) and of each batch generated (False).
    """
    folder.mkdir(parents=True, exist_ok=True)
    found: list[Answer] = []
    for number, shard in enumerate(shards):
        path = folder / f"shard-{number:05d}.parquet"
        answers = _read(path, [row.id for batch in shard for row in batch])
        if answers is not None:
            report(answers, True)
        else:
            answers = []
            for batch in shard:
                answers += answer(batch)
                report(answers[-len(batch) :], False)
            write(path, pa.Table.from_pylist([vars(a) for a in answers], pa.schema(SHARD)))
        found += answers
    return sorted(found, key=lambda a: a.id)


def _read(path: Path, ids: Sequence[int]) -> list[Answer] | None:
    if not path.exists():
        return None
    answers = [Answer(**row) for row in pq.read_table(path).to_pylist()]
    return answers if [a.id for a in answers] == list(ids) else None


def write(path: Path, table: pa.Table, **options: Any) -> None:
    """Write parquet so that `path` is whole or not there, also when a lost attempt writes it at the same time."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    pq.write_table(table, part, **options)
    os.replace(part, path)
