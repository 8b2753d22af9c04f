"""Results on disk as parquet shards that survive a kill: whole batches, one file each, published by rename.

Shards are cut from the list of batches alone, so another attempt cuts the same ones, with any number of processes; a
file whose rows are not the expected ones (the token budget was changed between attempts) is made anew. A result is a
frozen dataclass with `id` and `tokens` (that it took), such as `toolkit.generation.engine.Answer`.
"""

import os
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from toolkit.generation.rows import Row
from toolkit.spec import field_types

SHARD_TOKENS = 16384  # tokens of a shard: what a kill can cost, about two minutes of a small model on one core
MOST_SHARDS = 1000  # files of one stage, whatever its size
TYPES: dict[Any, pa.DataType] = {
    int: pa.int64(), str: pa.string(), bool: pa.bool_(), float: pa.float64(), tuple[float, ...]: pa.list_(pa.float32()),
}  # fmt: skip


class Result(Protocol):
    """What a batch gives for each of its rows."""

    @property
    def id(self) -> int:
        """Of the row."""

    @property
    def tokens(self) -> int:
        """How many it took to make."""


T = TypeVar("T", bound=Result)


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
    kind: type[T],
    work: Callable[[list[Row]], list[T]],
    report: Callable[[list[T], bool], None],
    share: tuple[int, int] = (0, 1),
) -> None:
    """Make the shards that `folder` lacks, batch by batch.

    work: the results of one batch, in its order. report: told the results of each shard found (True) and of each batch
    made (False). share: (k, n) for every n-th shard from the k-th on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(share[0], len(shards), share[1]):
        found = _read(folder, number, shards[number], kind)
        if found is not None:
            report(found, True)
            continue
        results: list[T] = []
        for batch in shards[number]:
            results += work(batch)
            report(results[-len(batch) :], False)
        schema = pa.schema({name: TYPES[hint] for name, hint in field_types(kind).items()})
        write(_path(folder, number), pa.Table.from_pylist([vars(result) for result in results], schema))


def collect(folder: Path, shards: Sequence[list[list[Row]]], kind: type[T]) -> list[T]:
    """All results, sorted by id, once every shard is there."""
    results: list[T] = []
    for number, shard in enumerate(shards):
        found = _read(folder, number, shard, kind)
        assert found is not None, f"{_path(folder, number)} is not what has just been made"
        results += found
    return sorted(results, key=lambda result: result.id)


def _path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.parquet"


def _read(folder: Path, number: int, shard: list[list[Row]], kind: type[T]) -> list[T] | None:
    path = _path(folder, number)
    if not path.exists():
        return None
    results = [kind(**row) for row in pq.read_table(path).to_pylist()]
    return results if [r.id for r in results] == [row.id for batch in shard for row in batch] else None


def write(path: Path, table: pa.Table, **options: Any) -> None:
    """Write parquet so that `path` is whole or not there, also when a lost attempt writes it at the same time."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    pq.write_table(table, part, **options)
    os.replace(part, path)
